"""The names of views and what they mean; no jax in here, since configs and worker processes read it."""

import functools
from typing import Any, NamedTuple

from kdjax.errors import UserError, nearest


class View(NamedTuple):
    """What happens to an image, in this order.

    Attributes:
      crop: '' for none; 'padded': by an eighth of the size with zeros, then cropped back; 'resized': a part of the
        image of random area and aspect ratio, resized (bicubic) to the view's size.
      smallest: part of the area that a resized crop has at least.
      flip: mirrors every second image.
      rotate: the largest angle in degrees, either way; corners become black.
      jitter: by how much brightness, contrast and colour vary, in random order.
      policy: '' or 'autoaugment_cifar10', 'randaugment', 'randaugment_timm'; its geometric steps come first, in the
        same gather.
      count, magnitude: of RandAugment's operations; magnitude up to 30.
      hole: side of one square of zeros, in pixels, or below 1 in parts of the view's side; centred anywhere, cut off
        at the edges.
      mix: '', 'mixup' or 'cutmix' with another example (`kdjax.data.views.mixing`).
      alpha: of the mix, from Beta(alpha, alpha).
    """

    crop: str = ""
    smallest: float = 0.08
    flip: bool = False
    rotate: float = 0.0
    jitter: float = 0.0
    policy: str = ""
    count: int = 2
    magnitude: int = 10
    hole: float = 0.0
    mix: str = ""
    alpha: float = 1.0


# Views join by '+', as in 'rrc_flip+jitter+randaugment:2,10'; what stands after ':' are the values of ARGUMENTS.
VIEWS = {
    "none": View(),
    "crop": View(crop="padded"),
    "crop_flip": View(crop="padded", flip=True),
    "crop_flip_cutout": View(crop="padded", flip=True, hole=1 / 2),  # DeVries & Taylor 2017: 16 pixels of CIFAR-10's 32
    "flip": View(flip=True),
    "rrc": View(crop="resized"),
    "rrc_flip": View(crop="resized", flip=True),
    "rrc_flip_rotate": View(crop="resized", smallest=0.2, flip=True, rotate=15.0),
    "autoaugment_cifar10": View(
        crop="resized", smallest=0.2, flip=True, policy="autoaugment_cifar10", hole=1 / 14
    ),  # 16 pixels of 224
    "autoaugment": View(policy="autoaugment_cifar10"),
    "randaugment": View(policy="randaugment"),
    "randaugment_timm": View(policy="randaugment_timm"),  # magnitude up to 10
    "rotate": View(rotate=15.0),
    "jitter": View(jitter=0.4),
    "cutout": View(hole=1 / 2),
    "mixup": View(mix="mixup"),
    "cutmix": View(mix="cutmix"),
}
ARGUMENTS = {
    "crop_flip_cutout": ("hole",),
    "rrc": ("smallest",),
    "rrc_flip": ("smallest",),
    "rrc_flip_rotate": ("smallest", "rotate"),
    "autoaugment_cifar10": ("smallest", "hole"),
    "randaugment": ("count", "magnitude"),
    "randaugment_timm": ("count", "magnitude"),
    "rotate": ("rotate",),
    "jitter": ("jitter",),
    "cutout": ("hole",),
    "mixup": ("alpha",),
    "cutmix": ("alpha",),
}
# Least and greatest of each argument.
LIMITS = {
    "smallest": (1e-3, 1.0),
    "rotate": (0.0, 180.0),
    "jitter": (0.0, 1.0),
    "count": (1, 8),
    "magnitude": (0, 30),
    "hole": (0.0, 4096),
    "alpha": (0.01, 100.0),
}


@functools.lru_cache(maxsize=256)
def parse(text: str) -> View:
    """Returns the view that a text names.

    Args:
      text: names of VIEWS joined by '+', each perhaps with ':' and its arguments; later ones add to earlier ones.

    Raises:
      UserError: an unknown name, or an argument that is too many, no number or out of range.
    """
    view = View()
    for part in text.split("+"):
        view = view._replace(**_changes(part))
    return view


def _changes(part: str) -> dict[str, Any]:
    name, _, given = part.partition(":")
    if name not in VIEWS:
        raise UserError(f"unknown view '{name}'.{nearest(name, VIEWS)}")
    values, names = given.split(",") if given else [], ARGUMENTS.get(name, ())
    if len(values) > len(names):
        takes = f"takes {len(names)}: {', '.join(names)}" if names else "takes none"
        raise UserError(f"view '{part}' has too many arguments; '{name}' {takes}.")
    changes = {field: value for field, value in VIEWS[name]._asdict().items() if value != View._field_defaults[field]}
    return changes | {field: _number(part, field, value) for field, value in zip(names, values, strict=False)}


def _number(part: str, field: str, text: str) -> float:
    low, high = LIMITS[field]
    try:
        value = type(View._field_defaults[field])(text)
    except ValueError:
        value = None
    if value is None or not low <= value <= high:
        kind = "a whole number" if isinstance(View._field_defaults[field], int) else "a number"
        raise UserError(f"view '{part}': {field} must be {kind} in [{low}, {high}], not '{text}'.")
    return value


def check(text: str, shape: tuple[int, ...], dtype: Any, where: str) -> View:
    """Returns the view that a text names.

    Args:
      text: as in `parse`.
      shape: of one image it is for, (height, width, channels) or (dim,).
      dtype: of its values.
      where: for the message, such as "config.data.view 'crop'".

    Raises:
      UserError: as in `parse`, or the view cannot be had of these images.
    """
    try:
        view = parse(text)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    if len(shape) == 1 and view != View():
        raise UserError(f"{where}: the data has vectors [rows, dim]; the only view of those is 'none'.")
    if (view.policy or view.jitter) and (dtype != "uint8" or shape[-1] not in (1, 3)):
        kind = f"{dtype} with {shape[-1]} channels"
        raise UserError(f"{where}: colours are changed in bytes (uint8) of 1 or 3 channels only; the data is {kind}.")
    return view

"""The names of views and their meanings. This file does not import jax, since configs and worker processes use it."""

import functools
from typing import Any, NamedTuple

from kdjax.errors import UserError, nearest


class View(NamedTuple):
    """The steps of a view, in the order in which they are applied to an image.

    Attributes:
      crop: '' for no crop; 'padded' to pad the image with zeros by an eighth of its size and crop it to its size;
        'resized' to crop a random area with a random aspect ratio and resize it (bicubic) to the view's size.
      smallest: Smallest fraction of the image's area in a resized crop.
      flip: Whether images are flipped left to right with probability 1/2.
      rotate: Largest angle of a random rotation in degrees; the corners become black.
      jitter: Range of the random changes of brightness, contrast and colour, which are made in random order.
      policy: '', 'autoaugment_cifar10', 'randaugment' or 'randaugment_timm'. Its geometric operations are applied
        before all changes of colours, in the same gather as the crop.
      count: Number of operations of RandAugment.
      magnitude: Magnitude of RandAugment's operations, up to 30 (up to 10 for 'randaugment_timm').
      hole: Side of one square of zeros, in pixels, or below 1 as a fraction of the view's side. Its centre is anywhere
        in the image, and it is cut off at the edges.
      mix: '', or 'mixup' or 'cutmix' with another example (see `kdjax.data.views.mixing`).
      alpha: Parameter of the distribution Beta(alpha, alpha) of the mix.
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


# Views can be joined by '+', and values of their ARGUMENTS follow a ':', as in 'rrc_flip+jitter+randaugment:2,10'.
VIEWS = {
    "none": View(),
    "crop": View(crop="padded"),
    "crop_flip": View(crop="padded", flip=True),
    "crop_flip_cutout": View(crop="padded", flip=True, hole=1 / 2),  # DeVries & Taylor 2017: 16 of CIFAR-10's 32 pixels
    "flip": View(flip=True),
    "rrc": View(crop="resized"),
    "rrc_flip": View(crop="resized", flip=True),
    "rrc_flip_rotate": View(crop="resized", smallest=0.2, flip=True, rotate=15.0),
    "autoaugment_cifar10": View(
        crop="resized", smallest=0.2, flip=True, policy="autoaugment_cifar10", hole=1 / 14
    ),  # a hole of 16 of 224 pixels
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
# Smallest and largest value of each argument.
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
    """Returns the view of a text.

    Args:
      text: Names of VIEWS joined by '+', each optionally followed by ':' and its arguments. If two set the same field,
        the last one counts.

    Raises:
      UserError: A name is unknown, or there are too many arguments, or one is not a number or out of range.
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
    """Returns the view of a text, for images of a shape and type.

    Args:
      text: Same as for `parse`.
      shape: Shape of one image, (height, width, channels) or (dim,).
      dtype: Type of its values.
      where: Beginning of the message, such as "config.data.view 'crop'".

    Raises:
      UserError: `parse` refuses the text, or the view cannot be applied to such images.
    """
    try:
        view = parse(text)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    if len(shape) == 1 and view != View():
        raise UserError(f"{where}: the data has vectors [rows, dim]; their only view is 'none'.")
    if (view.policy or view.jitter) and (dtype != "uint8" or shape[-1] not in (1, 3)):
        kind = f"{dtype} with {shape[-1]} channels"
        raise UserError(f"{where}: only bytes (uint8) of 1 or 3 channels can change colours; the data is {kind}.")
    return view

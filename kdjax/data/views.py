"""The views of an image: what is cropped, turned, recoloured and erased, drawn from (seed, epoch, example) alone."""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.data import colour, geometry, policies
from kdjax.data.resample import resize
from kdjax.errors import UserError, nearest
from kdjax.types import Array


class View(NamedTuple):
    """What happens to an image, in this order.

    Attributes:
      crop: '' for none; 'padded': by an eighth of the size with zeros, then cropped back; 'resized': a part of the
        image of random area and aspect ratio, resized (bicubic) to the view's size.
      smallest: part of the area that a resized crop has at least.
      flip: mirrors every second image.
      rotate: the largest angle in degrees, either way; corners become black.
      jitter: by how much brightness, contrast and colour vary, in random order.
      policy: '', 'autoaugment_cifar10' or 'randaugment'; its geometric steps come first, in the same gather.
      count, magnitude: of RandAugment's operations; magnitude up to 30.
      hole: side of one square of zeros, in pixels, or below 1 in parts of the view's side; centred anywhere, cut off
        at the edges.
      mix: '', 'mixup' or 'cutmix' with another example (`kdjax.data.mixing`).
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
    "magnitude": (0, policies.RANDAUGMENT_LEVELS),
    "hole": (0.0, 4096),
    "alpha": (0.01, 100.0),
}
# Words that part the random bits of one step from another's; the padded crop and the flip have none.
DOMAINS = {name: 0x76696577 + i for i, name in enumerate(("resized", "rotate", "jitter", "policy", "hole", "mix"))}
ORDERS = np.array(list(itertools.permutations(("brightness", "contrast", "colour"))))
ORDER_CODES = np.vectorize(colour.CODES.get)(ORDERS).astype(np.int32)


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


def check(text: str, images: Array, where: str) -> View:
    """Returns the view that a text names.

    Args:
      text: as in `parse`.
      images: those it is for, [rows, height, width, channels] or [rows, dim].
      where: for the message, such as "config.data.view 'crop'".

    Raises:
      UserError: as in `parse`, or the view cannot be had of these images.
    """
    try:
        view = parse(text)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    if images.ndim == 2 and view != View():
        raise UserError(f"{where}: the data has vectors [rows, dim]; the only view of those is 'none'.")
    if (view.policy or view.jitter) and (images.dtype != np.uint8 or images.shape[-1] not in (1, 3)):
        kind = f"{images.dtype} with {images.shape[-1]} channels"
        raise UserError(f"{where}: colours are changed in bytes (uint8) of 1 or 3 channels only; the data is {kind}.")
    return view


def draw_crop(example: Array, epoch: Array, seed: Array, pad_y: int, pad_x: int) -> tuple[Any, Any, Any]:
    """Draws each example's crop offset in [-pad, pad] and whether it is mirrored, from (seed, epoch, example) alone."""
    words = jax.vmap(lambda key: jax.random.bits(key, (3,), jnp.uint32))(_keys(example, epoch, seed))
    top, left = ((words[:, i] % (2 * pad + 1)).astype(jnp.int32) - pad for i, pad in enumerate((pad_y, pad_x)))
    return top, left, words[:, 2] >> 31 == 1


def draw(example: Array, epoch: Array, seed: Array, domain: str, count: int) -> Array:
    """Returns [batch, count] uint32 random bits of a step of DOMAINS, from (seed, epoch, example) alone."""
    word = DOMAINS[domain]
    return jax.vmap(lambda key: jax.random.bits(jax.random.fold_in(key, word), (count,), jnp.uint32))(
        _keys(example, epoch, seed)
    )


def _keys(example: Array, epoch: Array, seed: Array) -> Array:
    # Named, since other generators give other bits under vmap; uint32, so that x64 does not change the key.
    key = jax.random.key(jnp.asarray(seed, jnp.uint32), impl="threefry2x32")
    key = jax.random.fold_in(key, epoch)
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(example)


def show(images: Array, rows: Array, example: Array, epoch: Array, seed: Array, *, view: View, size: int = 0) -> Array:
    """Returns a view in the stored type, but for its mix; pure, with seed and epoch traced or not.

    Args:
      images: [rows, height, width, channels].
      rows: [batch] which of them to read.
      example: [batch] their indices in the full set, which their random keys are made of.
      epoch: [] integer.
      seed: [] integer in [0, 2^32).
      view: static.
      size: side of the view, static; 0: as stored.
    """
    words = functools.partial(draw, example, epoch, seed)
    sides = (size, size) if size else images.shape[1:3]
    tables = _tables(view, *sides)
    choice = _choose(tables, words("policy", 3 * len(tables.codes))) if tables else []
    crop = draw_crop(example, epoch, seed, *(geometry.padding(side) for side in images.shape[1:3]))
    values = _turned(images, rows, crop, words, view, sides, _warps(view, tables, choice, words, sides))
    if view.jitter:
        values = _jittered(values, words("jitter", 4), view.jitter)
    for names, (_, code, amount) in zip(tables.names if tables else (), choice, strict=True):
        values = colour.apply(values, code, amount, names)
    return erase(values, words("hole", 2), side_of(view.hole, sides)) if view.hole else values


def _turned(images: Array, rows: Array, crop: tuple, words: Callable, view: View, sides: tuple, warps: list) -> Array:
    """All geometric steps: a crop resized, where there is one, and one gather through all others."""
    height, width = images.shape[1:3]
    top, left, mirrored = (part if on else jnp.zeros_like(part) for part, on in zip(
        crop, (view.crop == "padded", view.crop == "padded", view.flip), strict=True))  # fmt: skip
    pixels = geometry.identity(*sides)
    for matrix, fill in reversed(warps):
        pixels = geometry.warp(pixels, matrix, *sides, fill)
    if view.crop != "resized" and (height, width) == tuple(sides) and warps:
        pixels = geometry.shift(geometry.flip(pixels, mirrored, width), top, left, height, width)
        return geometry.read(images, rows, pixels)
    if view.crop == "resized":
        bits = words("resized", 2 * geometry.ATTEMPTS + 2)
        box = geometry.resized_box(bits, view.smallest, 1.0, height, width)
        values = geometry.resized_crop(images[rows], box, mirrored, sides, "bicubic")
    else:
        values = images[rows]
        if view.crop or view.flip:
            values = geometry.padded_crop(images, rows, top, left, mirrored if view.flip else None)
        values = resize(values, sides[0]) if (height, width) != tuple(sides) else values
    return geometry.read(values, jnp.arange(values.shape[0]), pixels) if warps else values


def _warps(view: View, tables: policies.Tables | None, choice: list, words: Callable, sides: tuple) -> list:
    """(matrix [batch, 6], fill) of every affine step, in order."""
    warps = []
    if view.rotate:
        angles = geometry.rotations(view.rotate, *sides)
        warps.append((jnp.asarray(angles)[words("rotate", 1)[:, 0] % len(angles)], 0))
    return warps + [(matrix, tables.fill) for matrix, _, _ in choice if matrix is not None]


@functools.lru_cache(maxsize=64)
def _tables(view: View, height: int, width: int) -> policies.Tables | None:
    if view.policy == "randaugment":
        return policies.randaugment(height, width, view.count, view.magnitude)
    return policies.autoaugment_cifar10(height, width) if view.policy else None


def _choose(tables: policies.Tables, words: Array) -> list[tuple[Array | None, Array, Array]]:
    """Every slot's (matrix [batch, 6] or None where it has none, code [batch], amount [batch])."""
    slots, choices = tables.codes.shape
    chosen = []
    for slot in range(slots):
        choice = words[:, 0 if tables.together else 3 * slot] % choices
        applied = words[:, 3 * slot + 1] >> 8 < jnp.asarray(tables.likely[slot])[choice]
        sign = words[:, 3 * slot + 2] >> 31
        matrix = jnp.where(applied[:, None], jnp.asarray(tables.warps[slot])[choice, sign], STILL)
        code = jnp.where(applied, jnp.asarray(tables.codes[slot])[choice], colour.NOTHING)
        moves = (tables.warps[slot] != STILL).any()
        chosen.append((matrix if moves else None, code, jnp.asarray(tables.amounts[slot])[choice, sign]))
    return chosen


STILL = np.array(geometry.fixed((1, 0, 0, 0, 1, 0)), np.int32)


def _jittered(values: Array, words: Array, strength: float) -> Array:
    """Brightness, contrast and colour by factors in 1 +- strength, in any order."""
    codes = jnp.asarray(ORDER_CODES)[words[:, 0] % len(ORDERS)]
    spread = round(strength * colour.THOUSAND)
    amounts = (words[:, 1:] % (2 * spread + 1)).astype(jnp.int32) + colour.THOUSAND - spread
    for slot in range(3):
        values = colour.apply(values, codes[:, slot], amounts[:, slot], ("brightness", "contrast", "colour"))
    return values


def side_of(hole: float, sides: tuple[int, int]) -> int:
    """Returns the side of a hole in pixels, of a view of `sides`."""
    return int(hole) if hole >= 1 else int(hole * min(sides) + 1e-6)


def erase(values: Array, words: Array, side: int) -> Array:
    """Returns [batch, height, width, channels] with one square of zeros of `side`, cut off at the edges (Cutout)."""
    inside = True
    for axis, total in enumerate(values.shape[1:3]):
        first = (words[:, axis] % total).astype(jnp.int32)[:, None] - side // 2
        at = jnp.arange(total, dtype=jnp.int32)
        covered = (at >= first) & (at < first + 2 * (side // 2))
        inside &= jnp.expand_dims(covered, (2, 3) if axis == 0 else (1, 3))
    return jnp.where(inside, jnp.zeros((), values.dtype), values)

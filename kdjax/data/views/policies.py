"""AutoAugment and RandAugment, as tables of numbers that a device can read."""

from typing import NamedTuple

import numpy as np

from kdjax.data.views import colour, geometry

# The sub-policies of Cubuk et al. (2019), "AutoAugment: Learning Augmentation Strategies from Data": two operations
# (name, probability, magnitude from 0 to 9) each.
AUTOAUGMENT_CIFAR10 = (
    (("invert", 0.1, 7), ("contrast", 0.2, 6)),
    (("rotate", 0.7, 2), ("translate_x", 0.3, 9)),
    (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
    (("shear_y", 0.5, 8), ("translate_y", 0.7, 9)),
    (("autocontrast", 0.5, 8), ("equalize", 0.9, 2)),
    (("shear_y", 0.2, 7), ("posterize", 0.3, 7)),
    (("colour", 0.4, 3), ("brightness", 0.6, 7)),
    (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
    (("equalize", 0.6, 5), ("equalize", 0.5, 1)),
    (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
    (("colour", 0.7, 7), ("translate_x", 0.5, 8)),
    (("equalize", 0.3, 7), ("autocontrast", 0.4, 8)),
    (("translate_y", 0.4, 3), ("sharpness", 0.2, 6)),
    (("brightness", 0.9, 6), ("colour", 0.2, 8)),
    (("solarize", 0.5, 2), ("invert", 0.0, 3)),
    (("equalize", 0.2, 0), ("autocontrast", 0.6, 0)),
    (("equalize", 0.2, 8), ("equalize", 0.6, 4)),
    (("colour", 0.9, 9), ("equalize", 0.6, 6)),
    (("autocontrast", 0.8, 4), ("solarize", 0.2, 8)),
    (("brightness", 0.1, 3), ("colour", 0.7, 0)),
    (("solarize", 0.4, 5), ("autocontrast", 0.9, 3)),
    (("translate_y", 0.9, 9), ("translate_y", 0.7, 9)),
    (("autocontrast", 0.9, 2), ("solarize", 0.8, 3)),
    (("equalize", 0.8, 8), ("invert", 0.1, 3)),
    (("translate_y", 0.7, 9), ("autocontrast", 0.9, 1)),
)
# Cubuk et al. (2020), "RandAugment: Practical Automated Data Augmentation with a Reduced Search Space"; 'identity' does
# nothing.
RANDAUGMENT = (
    "identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "colour", "contrast",
    "sharpness", "posterize", "solarize", "autocontrast", "equalize",
)  # fmt: skip
RANDAUGMENT_LEVELS = 30  # largest magnitude
# timm's RandAugment ('rand-mM-nN-mstd0.5'), which Guo et al. (2024) use for ImageNet. Each operation is applied with
# probability 1/2, at a magnitude drawn from a normal distribution around M and clipped to 10. The functions return the
# amount for a magnitude as a fraction of 10; geometric operations have a random sign.
TIMM_LEVELS, TIMM_SPREAD, TIMM_PROBABILITY = 10, 0.5, 0.5
TIMM = {
    "autocontrast": lambda part: 0, "equalize": lambda part: 0, "invert": lambda part: 0,
    "rotate": lambda part: 30 * part,
    "posterize": lambda part: int(4 * part),
    "solarize": lambda part: min(256, int(256 * part)),
    "solarize_add": lambda part: min(128, int(110 * part)),
    "colour": lambda part: 1.8 * part + 0.1, "contrast": lambda part: 1.8 * part + 0.1,
    "brightness": lambda part: 1.8 * part + 0.1, "sharpness": lambda part: 1.8 * part + 0.1,
    "shear_x": lambda part: 0.3 * part, "shear_y": lambda part: 0.3 * part,
    "translate_x": lambda part: 0.45 * part, "translate_y": lambda part: 0.45 * part,
}  # fmt: skip
FACTORS = ("colour", "contrast", "brightness", "sharpness")  # operations whose amount is a factor
QUANTILES = 16  # number of magnitudes that stand for the normal distribution

# The amount of the largest magnitude. An amount of 0 does nothing, and the sign is random.
SIGNED = {
    "shear_x": 0.3, "shear_y": 0.3, "translate_x": 150 / 331, "translate_y": 150 / 331, "rotate": 30.0,
    "brightness": 0.9, "colour": 0.9, "contrast": 0.9, "sharpness": 0.9,
}  # fmt: skip
# The amounts (bits that are kept; threshold) of magnitude 0 and of the largest magnitude.
LEVELS = {"posterize": (8, 4), "solarize": (256, 0)}


class Tables(NamedTuple):
    """A policy as numbers. For every slot, an example draws a choice, whether it is applied, and a sign.

    Attributes:
      likely: Probability of applying each choice, in units of 2^-24, [slots, choices] uint32.
      warps: Affine map of each choice and sign, made by `geometry.fixed`, [slots, choices, 2, 6] int32.
      codes: Colour operation of each choice, a value of `colour.CODES` or `colour.NOTHING`, [slots, choices] int32.
      amounts: Amount of the colour operation for each sign, [slots, choices, 2] int32.
      names: Names of the colour operations that occur in each slot.
      together: Whether all slots of an example use the same choice.
      fill: Value of pixels for which an affine map reads outside the image.
    """

    likely: np.ndarray
    warps: np.ndarray
    codes: np.ndarray
    amounts: np.ndarray
    names: tuple[tuple[str, ...], ...]
    together: bool
    fill: int


def autoaugment_cifar10(height: int, width: int) -> Tables:
    """Returns AutoAugment's policy for CIFAR-10: 25 sub-policies of two operations.

    Pixels from outside the image are grey, as in PyTorch versions of the paper's code.
    """
    slots = [
        [(name, probability, level / 9) for name, probability, level in column]
        for column in zip(*AUTOAUGMENT_CIFAR10, strict=True)
    ]
    return _tables(slots, height, width, together=True, fill=128)


def randaugment(height: int, width: int, count: int, magnitude: int) -> Tables:
    """Returns RandAugment with `count` operations at `magnitude` of RANDAUGMENT_LEVELS.

    Pixels from outside the image are black.
    """
    slot = [(name, 1.0, magnitude / RANDAUGMENT_LEVELS) for name in RANDAUGMENT]
    return _tables([slot] * count, height, width, together=False, fill=0)


def randaugment_timm(height: int, width: int, count: int, magnitude: int) -> Tables:
    """Returns timm's RandAugment with `count` operations at magnitudes around `magnitude` of TIMM_LEVELS.

    Pixels from outside the image have timm's grey.
    """
    from scipy.special import ndtri

    drawn = magnitude + TIMM_SPREAD * ndtri((np.arange(QUANTILES) + 0.5) / QUANTILES)
    parts = np.clip(drawn, 0, TIMM_LEVELS) / TIMM_LEVELS
    choices = [(name, amount(part)) for name, amount in TIMM.items() for part in parts]
    rows = [_timm_row(name, amount, height, width) for name, amount in choices]
    warps, codes, amounts = (np.array([[row[i] for row in rows]] * count, np.int32) for i in range(3))
    likely = np.full((count, len(rows)), round(TIMM_PROBABILITY * (1 << 24)), np.uint32)
    names = tuple(name for name in colour.OPERATIONS if name in TIMM)
    return Tables(likely, warps, codes, amounts, (names,) * count, together=False, fill=116)


def _timm_row(name: str, amount: float, height: int, width: int) -> tuple[list, int, list]:
    """Returns the affine maps for both signs, the code and the amounts for both signs of one operation."""
    warp = geometry.WARPS.get(name, geometry.WARPS["translate_x"])
    signs = (1, -1) if name in geometry.WARPS else (0, 0)
    maps = [geometry.fixed(warp(sign * amount, height, width)) for sign in signs]
    whole = round(colour.THOUSAND * amount) if name in FACTORS else int(amount)
    return maps, colour.CODES.get(name, colour.NOTHING), [whole] * 2


def _tables(slots: list, height: int, width: int, together: bool, fill: int) -> Tables:
    rows = [[_row(name, part, height, width) for name, _, part in slot] for slot in slots]
    warps, codes, amounts = (np.array([[row[i] for row in slot] for slot in rows], np.int32) for i in range(3))
    likely = np.array([[round(probability * (1 << 24)) for _, probability, _ in slot] for slot in slots], np.uint32)
    names = tuple(
        tuple(name for name in colour.OPERATIONS if any(name == row[0] and row[1] for row in slot)) for slot in slots
    )
    return Tables(likely, warps, codes, amounts, names, together, fill)


def _row(name: str, part: float, height: int, width: int) -> tuple[list, int, list]:
    """Returns the affine maps, the code and the amounts of an operation at a fraction of its largest magnitude."""
    signed = [sign * SIGNED.get(name, 0.0) * part for sign in (1, -1)]
    warp = geometry.WARPS.get(name, geometry.WARPS["translate_x"])
    warp_amounts = signed if name in geometry.WARPS else [0.0, 0.0]
    maps = [geometry.fixed(warp(amount, height, width)) for amount in warp_amounts]
    if name in LEVELS:
        start, end = LEVELS[name]
        amounts = [int(np.rint(start + (end - start) * part))] * 2 if name == "posterize" else [
            int(np.ceil(start + (end - start) * part))] * 2  # fmt: skip
    else:
        amounts = [round(colour.THOUSAND * (1 + amount)) for amount in signed]
    return maps, colour.CODES.get(name, colour.NOTHING), amounts

"""Draws printed characters of 8x8 pixels: a second data set without a download, to test how features transfer."""

import pathlib
import string

import numpy as np

from kdjax.data.dataset import Rows
from kdjax.errors import UserError
from kdjax.randomness import philox

ALLOWED = string.ascii_letters + string.digits  # characters that all of the fonts have
SIDE, BLOCK = 32, 4  # sides of the bitmap and of a block, whose inked pixels are counted into one value, as for digits
# Fonts that come with matplotlib. The training split has none of the fonts of the test split.
TRAIN_FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique", "DejaVuSansMono"),
    *("DejaVuSansMono-Oblique", "DejaVuSerif", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic", "STIXGeneralBol"),
    *("STIXGeneralBolIta", "STIXGeneralItalic", "cmb10", "cmss10", "cmti10"),
)
TEST_FONTS = ("DejaVuSansMono-Bold", "DejaVuSerif-Bold", "STIXGeneral", "cmr10", "cmtt10")


def load_letters(data_dir: str, *, characters: str = string.ascii_uppercase, copies: int = 8, seed: int = 0) -> Rows:
    """Draws characters in 15 fonts for training and 5 other fonts for testing.

    Each image is slightly rotated, scaled and shifted at random. The images depend on the version of Pillow, which may
    draw single pixels differently.

    Args:
      data_dir: Not used, since the fonts come with matplotlib.
      characters: The classes: two or more different letters or digits.
      copies: Number of images of every character in every font, at least 1.
      seed: Seed of this data; config.seed does not change it.

    Returns:
      Images [rows, 8, 8, 1] uint8 in [0, 16]: the number of inked pixels in each 4x4 block, as in scikit-learn's
      digits.

    Raises:
      UserError: Characters are not letters or digits, not all different or fewer than two, or copies is below 1.
    """
    del data_dir
    if len(characters) < 2 or len(set(characters)) < len(characters) or not set(characters) <= set(ALLOWED):
        raise UserError(f"data set 'letters' needs two or more different letters or digits, not {characters!r}.")
    if copies < 1:
        raise UserError(f"data set 'letters' needs copies >= 1, not {copies}.")
    draw = np.random.Generator(philox(seed, "letters"))
    glyphs = [glyph for font in (*TRAIN_FONTS, *TEST_FONTS) for glyph in _glyphs(font, characters)]
    images = np.stack([_reduced(_moved(glyph, draw)) for glyph in glyphs for _ in range(copies)])
    labels = np.tile(np.repeat(np.arange(len(characters)), copies), len(TRAIN_FONTS) + len(TEST_FONTS))
    num_train = len(TRAIN_FONTS) * len(characters) * copies
    return Rows(images[..., None], labels, None, len(characters), num_train, class_names=tuple(characters))


def _glyphs(font: str, characters: str) -> list:
    """Returns large grey images of the characters in a font, each cropped to its ink."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    path = pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf", f"{font}.ttf")
    face, found = ImageFont.truetype(str(path), size=96), []
    for character in characters:
        sheet = Image.new("L", (256, 256))
        ImageDraw.Draw(sheet).text((128, 128), character, fill=255, font=face, anchor="mm")
        found.append(sheet.crop(sheet.getbbox()))
    return found


def _moved(glyph, draw: np.random.Generator) -> np.ndarray:
    """Returns the glyph fitted into the bitmap, rotated by up to 10 degrees, shrunk by up to a fifth and shifted."""
    from PIL import Image

    angle, share = np.deg2rad(draw.uniform(-10, 10)), draw.uniform(0.8, 1.0)
    shift = draw.uniform(-2, 2, 2)
    zoom = max(glyph.size) / (SIDE * share)  # pixels of the glyph per pixel of the bitmap
    turn = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    start = np.array(glyph.size) / 2 - turn @ (SIDE / 2 + shift)
    matrix = (*turn[0], start[0], *turn[1], start[1])
    return np.asarray(glyph.transform((SIDE, SIDE), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR))


def _reduced(bitmap: np.ndarray) -> np.ndarray:
    """Returns the number of inked pixels in each block."""
    cells = SIDE // BLOCK
    blocks = (bitmap > 127).reshape(cells, BLOCK, cells, BLOCK)
    return blocks.sum(axis=(1, 3)).astype(np.uint8)

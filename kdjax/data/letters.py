"""Printed characters as small as the digits: a second set without a download, for features to carry over to."""

import pathlib
import string

import numpy as np

from kdjax.data.dataset import Rows
from kdjax.errors import UserError
from kdjax.randomness import philox

ALLOWED = string.ascii_letters + string.digits  # what all of the fonts have
SIDE, BLOCK = 32, 4  # of the bitmap; its blocks are counted into one value each, as those of the digits were
# Fonts that come with matplotlib. Those of the test split are drawn nowhere else.
TRAIN_FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique", "DejaVuSansMono"),
    *("DejaVuSansMono-Oblique", "DejaVuSerif", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic", "STIXGeneralBol"),
    *("STIXGeneralBolIta", "STIXGeneralItalic", "cmb10", "cmss10", "cmti10"),
)
TEST_FONTS = ("DejaVuSansMono-Bold", "DejaVuSerif-Bold", "STIXGeneral", "cmr10", "cmtt10")


def load_letters(data_dir: str, *, characters: str = string.ascii_uppercase, copies: int = 8, seed: int = 0) -> Rows:
    """Draws printed characters, each turned, scaled and moved a little, in 20 fonts of which 5 are for the test alone.

    Args:
      data_dir: not used: the fonts come with matplotlib. Another release of Pillow may draw a pixel otherwise.
      characters: the classes, two or more different letters or digits.
      copies: of every character in every font, at least 1.
      seed: of this data alone, so that config.seed does not move it.

    Returns:
      [rows, 8, 8, 1] uint8 in [0, 16]: how many pixels of a 4x4 block have ink, as in scikit-learn's digits.

    Raises:
      UserError: characters that are none of these or not all different, or no copy.
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
    """Large grey images of a font's characters, each cut to its ink."""
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
    """The glyph fitted into the bitmap, up to 10 degrees turned, up to a fifth smaller, up to 2 pixels moved."""
    from PIL import Image

    angle, share = np.deg2rad(draw.uniform(-10, 10)), draw.uniform(0.8, 1.0)
    shift = draw.uniform(-2, 2, 2)
    zoom = max(glyph.size) / (SIDE * share)  # pixels of the glyph to one of the bitmap
    turn = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    start = np.array(glyph.size) / 2 - turn @ (SIDE / 2 + shift)
    matrix = (*turn[0], start[0], *turn[1], start[1])
    return np.asarray(glyph.transform((SIDE, SIDE), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR))


def _reduced(bitmap: np.ndarray) -> np.ndarray:
    """How many pixels of each block have ink."""
    cells = SIDE // BLOCK
    blocks = (bitmap > 127).reshape(cells, BLOCK, cells, BLOCK)
    return blocks.sum(axis=(1, 3)).astype(np.uint8)

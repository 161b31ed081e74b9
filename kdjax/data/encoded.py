"""Images that stay encoded (as JPEG, PNG and so on) until they are read, such as the files of a folder."""

import abc
import contextlib
import copy
import dataclasses
import functools
import hashlib
import io
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from kdjax.bounded import TooLarge, open_regular
from kdjax.data.content import files_hash
from kdjax.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

MOST_PIXELS = 85_000_000  # of one image; the largest of ImageNet has 61 million
# Pillow's readers that only read. Others start programs, such as Ghostscript for PostScript.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "PPM", "TIFF")
MODES = {1: "L", 3: "RGB"}  # channels -> Pillow's mode
ORIENTATION = 274  # EXIF's tag
TURNED = range(2, 9)  # its values for images that are mirrored or turned; 1 is upright
ON_THEIR_SIDE = range(5, 9)  # those that change height and width
DEEP = ("PNG", "PPM")  # formats whose grey levels in Pillow's mode of 32 bits are of 16 bits
BITS, PHOTOMETRIC = 258, 262  # tags of TIFF: bits of a level, and the meaning of the levels
WHITE_IS_ZERO = 0  # a value of PHOTOMETRIC


class Encoded(abc.ABC):
    """Encoded images by row. Subclasses must be picklable, since worker processes read them.

    Attributes:
      channels: Number of channels of a decoded image, 1 or 3; every image is converted to it.
      exif: Whether an image is turned as its EXIF data says, which `upright` sets.
    """

    channels: int = 3
    exif: bool = False

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def encoded(self, row: int) -> bytes:
        """Returns the bytes of the image file of a row."""

    @abc.abstractmethod
    def name(self, row: int) -> str:
        """Returns the name of a row's image, for messages."""

    def content_hash(self) -> str:
        """Returns a hash of all images, which a copy elsewhere has too."""
        digest = hashlib.sha256()
        for row in range(len(self)):
            digest.update(hashlib.sha256(self.encoded(row)).digest())
        return digest.hexdigest()

    @property
    def shape(self) -> tuple[int]:
        """Number of images, as the shape of an array."""
        return (len(self),)


@dataclasses.dataclass(frozen=True, eq=False)
class Files(Encoded):
    """Image files.

    Attributes:
      paths: Path of each file, [rows].
      channels: Number of channels of a decoded image, 1 or 3.
    """

    paths: Sequence[str]
    channels: int = 3

    def __len__(self) -> int:
        return len(self.paths)

    def encoded(self, row: int) -> bytes:
        try:
            with open_regular(self.paths[row]) as file:
                return file.read()
        except OSError as error:
            line = f"{self.paths[row]} cannot be read: {error.strerror}; remove or replace it."
            raise UserError(line) from error

    def name(self, row: int) -> str:
        return str(self.paths[row])

    def content_hash(self) -> str:
        """Returns a hash of the files' names below their common folder, their sizes and their ends."""
        paths = [os.path.abspath(path) for path in self.paths]
        try:
            return files_hash(paths, os.path.commonpath([os.path.dirname(path) for path in paths]))
        except OSError as error:
            raise UserError(f"{error.filename} cannot be read: {error.strerror}.") from error


def decode(images: Encoded, row: int) -> "Image.Image":
    """Returns the decoded image of a row, converted to the number of channels of `images`.

    Grey images of 16 bits are scaled to 8. An orientation that EXIF data names is applied if `images.exif` is set; if
    not, pixels stay where they are. Pillow itself always turns TIFF images.

    Raises:
      UserError: The file is not an image, it is truncated, or its grey levels have 32 bits, whose scale is not known.
    """
    from PIL import Image, ImageOps

    content = images.encoded(row)
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        _check_pixels(image.size)
        image.load()
        if images.exif:
            ImageOps.exif_transpose(image, in_place=True)
        return _in_8_bits(image).convert(MODES[images.channels])
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = "it is empty" if not content else _reason(error)
        raise UserError(f"{images.name(row)} cannot be read as an image: {reason}; remove or replace it.") from error


def _reason(error: Exception) -> str:
    """Returns what is wrong with an image, in Pillow's words where they say something to a reader."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return f"unknown or damaged format (known are {', '.join(FORMATS)})"
    if isinstance(error, Image.DecompressionBombError):
        return f"it unpacks to more than {MOST_PIXELS // 10**6} million pixels"
    return " ".join(str(error).split()).rstrip(".")


def _in_8_bits(image: "Image.Image") -> "Image.Image":
    """Returns an image with grey levels of 16 bits scaled to 8, where Pillow's own conversion clips them to white."""
    from PIL import Image

    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in DEEP):
        tags = dict(getattr(image, "tag_v2", {}))  # Pillow gives levels of a TIFF image as they are in the file
        levels = np.asarray(image, np.float64) / (2 ** max(tags.get(BITS, (16,))) - 1)
        if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
            levels = 1 - levels
        return Image.fromarray(np.round(255 * levels).clip(0, 255).astype(np.uint8))
    if image.mode in ("I", "F"):
        kind = "float" if image.mode == "F" else "32-bit"
        raise ValueError(f"its grey levels are {kind} numbers of unknown range; save it with 8 or 16 bits")
    return image


def _check_pixels(size: tuple[int, int]) -> None:
    """Refuses an image before it is unpacked, by the size in its header."""
    if size[0] * size[1] > MOST_PIXELS:
        raise TooLarge(f"it unpacks to {size[0]}x{size[1]} pixels, more than {MOST_PIXELS // 10**6} million")


def size_of(images: Encoded, row: int) -> tuple[int, int]:
    """Returns the height and the width of a row's decoded image, from the header of the file.

    Raises:
      UserError: The file is not an image.
    """
    from PIL import Image

    content = images.encoded(row)
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        width, height = image.size
        _check_pixels((width, height))
        if images.exif and _orientation(image) in ON_THEIR_SIDE:
            width, height = height, width
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # TooLarge is a ValueError
        reason = "it is empty" if not content else _reason(error)
        raise UserError(f"{images.name(row)} cannot be read as an image: {reason}; remove or replace it.") from error
    return height, width


def _orientation(image: "Image.Image") -> int:
    """Returns the orientation that EXIF data names, 1 for upright; of a TIFF image 1, since Pillow turns it itself."""
    return 1 if image.format == "TIFF" else image.getexif().get(ORIENTATION, 1)


def count_turned(images: Encoded, rows: Iterable[int]) -> int:
    """Returns how many of the rows have an image whose EXIF data says that it is not upright as it is stored."""
    from PIL import Image

    count = 0
    for row in rows:
        with contextlib.suppress(OSError, ValueError, SyntaxError, Image.DecompressionBombError, UserError):
            image = Image.open(io.BytesIO(images.encoded(row)), formats=FORMATS)
            count += _orientation(image) in TURNED
    return count


@functools.lru_cache(maxsize=8)  # runs that read the same images share what is decoded of them
def upright(images: Encoded) -> Encoded:
    """Returns the same images, turned as their EXIF data says when they are decoded."""
    turned = copy.copy(images)
    object.__setattr__(turned, "exif", True)  # of a frozen dataclass, too
    return turned


def decode_all(images: Encoded) -> np.ndarray:
    """Returns all images as one array [rows, height, width, channels] uint8.

    Raises:
      UserError: Two images differ in size, or an image cannot be read.
    """
    first = np.asarray(decode(images, 0))
    out = np.empty((len(images), *first.shape[:2], images.channels), np.uint8)
    for row in range(len(images)):
        image = np.asarray(decode(images, row))
        if image.shape[:2] != first.shape[:2]:
            raise UserError(
                f"{images.name(row)} is {image.shape[0]}x{image.shape[1]} and {images.name(0)} is "
                f"{first.shape[0]}x{first.shape[1]}: set config.data.size, to which images are cropped and resized."
            )
        out[row] = image.reshape(out.shape[1:])
    return out

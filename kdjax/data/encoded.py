"""Images that stay encoded (as JPEG, PNG and so on) until they are read, such as the files of a folder."""

import abc
import dataclasses
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from kdjax.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

MODES = {1: "L", 3: "RGB"}  # channels -> Pillow's mode


class Encoded(abc.ABC):
    """Encoded images by row. Subclasses must be picklable, since worker processes read them.

    Attributes:
      channels: Number of channels of a decoded image, 1 or 3; every image is converted to it.
    """

    channels: int = 3

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def encoded(self, row: int) -> bytes:
        """Returns the bytes of the image file of a row."""

    @abc.abstractmethod
    def name(self, row: int) -> str:
        """Returns the name of a row's image, for messages."""

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
            with open(self.paths[row], "rb") as file:
                return file.read()
        except OSError as error:
            raise UserError(f"{self.paths[row]} cannot be read: {error.strerror}.") from error

    def name(self, row: int) -> str:
        return str(self.paths[row])


def decode(images: Encoded, row: int) -> "Image.Image":
    """Returns the decoded image of a row, converted to the number of channels of `images`.

    Raises:
      UserError: The file is not an image, or it is truncated.
    """
    from PIL import Image

    content = images.encoded(row)
    try:
        image = Image.open(io.BytesIO(content))
        image.load()
        return image.convert(MODES[images.channels])
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = "it is empty" if not content else " ".join(str(error).split())
        raise UserError(f"{images.name(row)} cannot be read as an image: {reason}; remove or replace it.") from error


def size_of(images: Encoded, row: int) -> tuple[int, int]:
    """Returns the height and the width of a row's image, from the header of the file.

    Raises:
      UserError: The file is not an image.
    """
    from PIL import Image, UnidentifiedImageError

    content = images.encoded(row)
    try:
        width, height = Image.open(io.BytesIO(content)).size
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        reason = "it is empty" if not content else "unknown or damaged format"
        raise UserError(f"{images.name(row)} cannot be read as an image: {reason}; remove or replace it.") from error
    return height, width


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

"""Images that stay encoded (JPEG, PNG ...) until a row is read: files of a folder, records of a prepared set."""

import abc
import dataclasses
import io
from collections.abc import Sequence

import numpy as np

from kdjax.errors import UserError

MODES = {1: "L", 3: "RGB"}  # channels -> Pillow's mode


class Encoded(abc.ABC):
    """Images by row; picklable, since worker processes read them.

    Attributes:
      channels: 1 or 3, to which every image is converted when it is decoded.
    """

    channels: int = 3

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def encoded(self, row: int) -> bytes:
        """Returns the bytes of an image file."""

    @abc.abstractmethod
    def name(self, row: int) -> str:
        """Returns what a message calls the image."""

    @property
    def shape(self) -> tuple[int]:
        """How many images, as an array says it."""
        return (len(self),)


@dataclasses.dataclass(frozen=True, eq=False)
class Files(Encoded):
    """Image files.

    Attributes:
      paths: [rows] of them.
      channels: 1 or 3.
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


def decode(images: Encoded, row: int):
    """Returns an image as Pillow has it, decoded and in the mode of the images' channels.

    Raises:
      UserError: it is no image, or a truncated one.
    """
    from PIL import Image

    content = images.encoded(row)
    try:
        image = Image.open(io.BytesIO(content))
        image.load()
        return image.convert(MODES[images.channels])
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = "it is empty" if not content else " ".join(str(error).split())
        raise UserError(f"{images.name(row)} is no image that can be read: {reason}; remove or replace it.") from error


def size_of(images: Encoded, row: int) -> tuple[int, int]:
    """Returns height and width of an image from its header.

    Raises:
      UserError: it is no image.
    """
    from PIL import Image, UnidentifiedImageError

    content = images.encoded(row)
    try:
        width, height = Image.open(io.BytesIO(content)).size
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        reason = "it is empty" if not content else "unknown or damaged format"
        raise UserError(f"{images.name(row)} is no image that can be read: {reason}; remove or replace it.") from error
    return height, width


def decode_all(images: Encoded) -> np.ndarray:
    """Returns [rows, height, width, channels] uint8 of images of one size.

    Raises:
      UserError: two images differ in size, or one cannot be read.
    """
    first = np.asarray(decode(images, 0))
    out = np.empty((len(images), *first.shape[:2], images.channels), np.uint8)
    for row in range(len(images)):
        image = np.asarray(decode(images, row))
        if image.shape[:2] != first.shape[:2]:
            raise UserError(
                f"{images.name(row)} is {image.shape[0]}x{image.shape[1]}, {images.name(0)} "
                f"{first.shape[0]}x{first.shape[1]}: set config.data.size, to which images are cropped and resized."
            )
        out[row] = image.reshape(out.shape[1:])
    return out

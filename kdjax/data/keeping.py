"""Whether a set's images are decoded into memory or stay encoded, to be streamed."""

import functools
import os
from typing import NamedTuple

import numpy as np

from kdjax.data.encoded import Encoded, decode_all, size_of
from kdjax.errors import UserError

PART_OF_MEMORY = 0.4  # that a decoded set may take
SAMPLE = 64  # headers that are read to see whether sizes differ, before all are read


class Kept(NamedTuple):
    """Images as a data set keeps them.

    Attributes:
      images: an array, or encoded.
      shape: of one image as a batch carries it.
      cropped: whether a stream must crop them, since they differ in size.
    """

    images: np.ndarray | Encoded
    shape: tuple[int, ...]
    cropped: bool


def keep(images: np.ndarray | Encoded, size: int, stream: str, skip_bad: bool) -> Kept:
    """Decodes images of one size that fit into memory; leaves others encoded.

    Args:
      images: as a source returned them.
      size: config.data.size.
      stream: config.data.stream: 'auto', 'always', or 'never'.
      skip_bad: whether unreadable images are the stream's matter.

    Raises:
      UserError: images differ in size and config.data.size is 0; they may not be streamed and must be.
    """
    if not isinstance(images, Encoded):
        return Kept(images, images.shape[1:], False)
    found = _one_size(images, skip_bad)
    if found is None:
        if not size:
            raise UserError("images differ in size: set config.data.size, to which they are cropped and resized.")
        if stream == "never":
            raise UserError("config.data.stream = 'never', but images of different sizes are always streamed.")
        return Kept(images, (size, size, images.channels), True)
    shape = (*found, images.channels)
    fits = len(images) * int(np.prod(shape)) < PART_OF_MEMORY * host_memory()
    if stream == "always" or (stream == "auto" and (skip_bad or not fits)):
        return Kept(images, shape, False)
    return Kept(_decoded(images), shape, False)


@functools.lru_cache(maxsize=4)
def _decoded(images: Encoded) -> np.ndarray:
    return decode_all(images)


@functools.lru_cache(maxsize=8)
def _one_size(images: Encoded, skip_bad: bool) -> tuple[int, int] | None:
    """Height and width where all images have the same, else None; a sample first, since most sets show it at once."""
    sample = np.unique(np.linspace(0, len(images) - 1, SAMPLE).astype(int))
    sizes = set()
    for row in (*sample, *range(len(images))):
        try:
            sizes.add(size_of(images, int(row)))
        except UserError:
            if not skip_bad:
                raise
        if len(sizes) > 1:
            return None
    if not sizes:
        raise UserError("no image of the set can be read; is config.data.name right?")
    return sizes.pop()


def host_memory() -> int:
    """Returns the bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

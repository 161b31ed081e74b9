"""Decides whether encoded images are decoded into memory or stay encoded and are streamed."""

import functools
import os
from typing import NamedTuple

import numpy as np
from absl import logging

from kdjax.data.encoded import Encoded, count_turned, decode_all, size_of, upright
from kdjax.errors import UserError

PART_OF_MEMORY = 0.4  # largest fraction of the memory that a decoded set may take
SAMPLE = 64  # number of headers that are read first, since most sets of different sizes show it in a few images


class Kept(NamedTuple):
    """The images of a data set, decoded or encoded.

    Attributes:
      images: An array, or encoded images.
      shape: Shape of one image in a batch.
      cropped: Whether a stream must crop the images, since they differ in size.
    """

    images: np.ndarray | Encoded
    shape: tuple[int, ...]
    cropped: bool


def keep(images: np.ndarray | Encoded, size: int, stream: str, skip_bad: bool) -> Kept:
    """Decodes encoded images that have one size and fit into memory; leaves all other images unchanged.

    Args:
      images: Images as a source returned them.
      size: config.data.size.
      stream: config.data.stream: 'auto', 'always' or 'never'.
      skip_bad: config.data.skip_bad. Only a stream can skip images, so that they are not decoded here.

    Raises:
      UserError: Images differ in size, and config.data.size is 0 or config.data.stream is 'never'.
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
    """Returns the height and the width that all images have, or None if two differ; looks at a sample first."""
    sample = _sample(images)
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
        raise UserError("no image of the data set can be read; check config.data.name.")
    return sizes.pop()


def _sample(images: Encoded) -> np.ndarray:
    return np.unique(np.linspace(0, len(images) - 1, SAMPLE).astype(int))


def oriented(images: np.ndarray | Encoded, exif: bool, where: str) -> np.ndarray | Encoded:
    """Returns images that are turned as their EXIF data says, or as they are, with a warning if that ignores some.

    Args:
      images: Images as a source returned them.
      exif: config.data.exif.
      where: Name of the data set, for messages.

    Raises:
      UserError: They are asked to be turned, and are stored as an array.
    """
    if not isinstance(images, Encoded):
        if exif:
            raise UserError(f"config.data.exif: {where} is stored as an array, which has no EXIF data; leave it False.")
        return images
    if exif:
        return upright(images)
    _warn_of_turned(images, where)
    return images


@functools.lru_cache(maxsize=8)  # once for each data set of a process
def _warn_of_turned(images: Encoded, where: str) -> None:
    rows = _sample(images)
    if turned := count_turned(images, map(int, rows)):
        logging.warning(
            "%s: %d of %d images that were looked at have EXIF data by which they are turned or mirrored. It is "
            "ignored; config.data.exif=True applies it.",
            where,
            turned,
            len(rows),
        )


def host_memory() -> int:
    """Returns the size of this machine's memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

"""Exports a run as a program: a function of stored images with its weights inside, for any size of batch."""

import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import export

from kdjax import models
from kdjax.data.views import augment
from kdjax.errors import UserError
from kdjax.inspection.predict import load_run
from kdjax.store import Store
from kdjax.store.files import first_line, write_atomic
from kdjax.types import Array

PLATFORMS = ("cpu", "cuda", "tpu")


def export_program(
    store: Store,
    name: str,
    path: str,
    *,
    checkpoint: str = "last",
    data_dir: str = "data",
    devices: Sequence[jax.Device] | None = None,
) -> list[str]:
    """Writes a run's logits as a function of images, in StableHLO as `jax.export` serializes it.

    `jax.export.deserialize(content).call(images)` gives the logits [batch, classes] of images [batch, ...] as the data
    set stores them: the run's resizing and normalisation are a part of the program, and so are its weights.

    Args:
      store: Store that holds the run.
      name: Name of the run.
      path: Path of the file.
      checkpoint: 'last', 'best' or a step.
      data_dir: Directory of the data sets that do not come with kdjax.
      devices: Devices of this process; all of them by default.

    Returns:
      The shape of the images, 'batch' first, in words.

    Raises:
      UserError: The run, its data set or the checkpoint does not exist, the network is no function of a batch of
        unknown size, or the file cannot be written.
    """
    run = load_run(store, name, checkpoint, data_dir, devices)
    network, dataset = run.network, run.dataset

    def logits(images: Array) -> Array:
        rows = jnp.arange(images.shape[0])
        shown = augment.render(images, rows, rows, 0, 0, view="none", stored=dataset.stored, train=False)
        return models.call(network.model, network.variables, shown, train=False)[0].logits

    sizes = ["batch", *map(str, dataset.stored_shape)]
    dtype = jax.dtypes.canonicalize_dtype(dataset.dtype)
    images = jax.ShapeDtypeStruct(export.symbolic_shape(", ".join(sizes)), dtype)
    try:
        content = export.export(jax.jit(logits), platforms=PLATFORMS)(images).serialize()
    except UserError:
        raise
    except Exception as error:  # a network of the user's own, traced for a batch without a number
        raise UserError(
            f"run '{name}' cannot be exported for a batch of any size ({type(error).__name__}: {first_line(error)}); "
            "let its network use images.shape[0] only where a shape is wanted."
        ) from error
    write_atomic(pathlib.Path(path), bytes(content), "--out")
    return sizes

"""What a run remembers of its own network's outputs: the mean of each class, or the mean of each example.

These memories are adapters without parameters. Like all memories they are the same on every device, are saved with the
train state, and resume to the bit.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from kdjax import losses
from kdjax.data import Dataset
from kdjax.distillation import memory
from kdjax.distillation.adapters import Adapter, Arguments
from kdjax.types import Array


class Centroids(Adapter):
    """The mean output of every class, for MCMI (Ye et al. 2024).

    The warm-up gathers the mean over its epochs. It should train nothing (`config.warmup.trains = 'distiller'`): then
    the centroids are those of the initial network in evaluation mode, on the training views.

    Attributes:
      momentum: Weight of the old centroids when a batch of training proper moves them; 1 holds them fixed, as the
        released code does.
    """

    momentum: float = 1.0

    def first_memory(self, seed: int, dataset: Dataset | None) -> dict[str, np.ndarray]:
        """Returns uniform centroids and empty sums, [classes, classes].

        Raises:
          ValueError: There is no data set.
        """
        del seed
        classes = _needed(dataset).num_classes
        exact = jax.dtypes.canonicalize_dtype(np.float64)
        return {
            "centroids": np.full((classes, classes), 1 / classes, exact),
            "sums": np.zeros((classes, classes), exact),
        }

    @nn.compact
    def __call__(self, given: Arguments) -> dict:
        """Returns the centroids as they are before this batch."""
        if not self.has_variable("memory", "centroids"):  # flax asks for the parameters alone
            return {"centroids": jnp.zeros((given["logits"].shape[-1],) * 2)}
        centroids = self.get_variable("memory", "centroids")
        outputs = lax.stop_gradient(jax.nn.softmax(given["logits"].astype(centroids.dtype)))
        sums, counts = losses.centroid_sums(outputs, given["labels"], where=given["where"] & given["labelled"])
        if given["axis_name"] is not None:
            sums, counts = lax.psum((sums, counts), given["axis_name"])
        if self.warming_up:
            gathered = self.get_variable("memory", "sums") + sums
            self.put_variable("memory", "sums", gathered)
            self.put_variable("memory", "centroids", losses.normalize_centroids(gathered))
        elif self.momentum < 1:
            self.put_variable("memory", "centroids", losses.move_centroids(centroids, sums, counts, self.momentum))
        return {"centroids": centroids}


class Remembered(Adapter):
    """The mean of each training example's outputs over the epochs before, for SoTeacher (Dong et al. 2022).

    An example that was not seen before is remembered as it is now, so that nothing pulls at it.

    Attributes:
      average: 'mean', or 'released' for the code's mean, in which the first output counts twice.
    """

    average: str = "mean"

    def first_memory(self, seed: int, dataset: Dataset | None) -> dict[str, np.ndarray]:
        """Returns empty outputs [examples, classes] and visits [examples], and each row's place in them.

        Raises:
          ValueError: There is no data set.
        """
        del seed
        dataset = _needed(dataset)
        rows, classes = dataset.splits["train"], dataset.num_classes
        outputs = np.zeros((len(rows), classes), jax.dtypes.canonicalize_dtype(np.float64))
        memory.announce_size(f"{len(rows)} x {classes} outputs", outputs.nbytes)
        slot = memory.slots(len(dataset.labels), rows)
        return {"outputs": outputs, "visits": np.zeros(len(rows), np.int32), "slot": slot}

    @nn.compact
    def __call__(self, given: Arguments) -> dict:
        """Returns what is remembered of each example, [batch, classes]."""
        if not self.has_variable("memory", "outputs"):  # flax asks for the parameters alone
            return {"remembered": jnp.zeros(given["logits"].shape)}
        old, visits = (self.get_variable("memory", name) for name in ("outputs", "visits"))
        places = self.get_variable("memory", "slot")[given["index"]]
        outputs = lax.stop_gradient(jax.nn.softmax(given["logits"].astype(old.dtype)))
        self._remember(old, visits, (places, outputs, given["where"]), given["axis_name"])
        return {"remembered": jnp.where(visits[places][:, None] > 0, old[places], outputs)}

    def _remember(self, old: Array, visits: Array, seen: tuple[Array, Array, Array], axis_name: str | None) -> None:
        """Adds the outputs of the global batch to the memory, identically on every device."""
        if axis_name is not None:
            seen = lax.all_gather(seen, axis_name, axis=0, tiled=True)
        places, outputs, counted = seen
        share = losses.remembered_share(visits[places] + 1, self.average)[:, None].astype(old.dtype)
        change = jnp.where(counted[:, None], share * (outputs - old[places]), 0)
        self.put_variable("memory", "outputs", old.at[places].add(change))
        self.put_variable("memory", "visits", visits.at[places].add(counted.astype(visits.dtype)))


def _needed(dataset: Dataset | None) -> Dataset:
    if dataset is None:
        raise ValueError("a memory of outputs needs the data set that it remembers.")
    return dataset

"""What a teacher makes of each class: mean vectors for KD++, mean outputs for GKL, relations of classes for WKD-L."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from kdjax import losses
from kdjax.data import Dataset
from kdjax.distillation.adapters import Adapter, Arguments
from kdjax.models.initialize import zeros
from kdjax.types import Array


class ClassMeans(Adapter):
    """The mean of the teacher's vectors in each class, over the training images as the teacher is shown them.

    Wang et al., "Improving Knowledge Distillation via Regularizing Feature Direction and Norm" (KD++), ECCV 2024.

    The warm-up gathers the sums and trains nothing (`config.warmup.trains = 'distiller'`).
    """

    INITIALIZERS = ((r"sums|counts", zeros),)

    @nn.compact
    def __call__(self, given: Arguments) -> dict:
        """Returns both networks' vectors, and the mean of the teacher's in each class, 0 for one without examples."""
        student, teacher = given["student_embeddings"], given["teacher_embeddings"]
        classes = given["teacher_logits"].shape[-1]
        # Statistics, since a memory has its shape before the teacher is known.
        sums = self.variable("batch_stats", "sums", jnp.zeros, (classes, teacher.shape[-1]))
        counts = self.variable("batch_stats", "counts", jnp.zeros, (classes,))
        if self.warming_up and not self.is_initializing():
            found = _by_class(given["classes"], given["where"] & given["labelled"], teacher, classes)
            axis_name = given["axis_name"]
            new = found if axis_name is None else lax.psum(found, axis_name)
            sums.value, counts.value = sums.value + new[0], counts.value + new[1]
        means = sums.value / jnp.maximum(counts.value, 1)[:, None]
        return {"student_vectors": student, "teacher_vectors": teacher, "class_means": lax.stop_gradient(means)}


class ClassOutputs(Adapter):
    """The mean of the teacher's outputs in each class over the epoch before; uniform in the first epoch.

    Cui et al., "Generalized Kullback-Leibler Divergence Loss" (GKL), 2025. A class that the epoch before did not show
    keeps its mean.

    Attributes:
      teacher_temperature: Temperature of the outputs.
    """

    teacher_temperature: float = 4.0

    def first_memory(self, seed: int, dataset: Dataset | None) -> dict[str, np.ndarray]:
        """Returns uniform outputs and empty sums [classes, classes], counts [classes] and the epoch of the sums [].

        Raises:
          ValueError: There is no data set.
        """
        del seed
        if dataset is None:
            raise ValueError("mean outputs of classes need the data set, for the number of classes.")
        classes, exact = dataset.num_classes, jax.dtypes.canonicalize_dtype(np.float64)
        return {
            "outputs": np.full((classes, classes), 1 / classes, exact),
            "sums": np.zeros((classes, classes), exact),
            "counts": np.zeros(classes, exact),
            "epoch": np.zeros((), np.int32),
        }

    @nn.compact
    def __call__(self, given: Arguments) -> dict:
        """Returns the mean outputs [classes, classes] of the epoch before, and adds this batch to those of its own."""
        classes = given["teacher_logits"].shape[-1]
        if not self.has_variable("memory", "outputs"):  # flax asks for the parameters alone
            return {"class_outputs": jnp.full((classes, classes), 1 / classes)}
        old, sums, counts, epoch = (
            self.get_variable("memory", name) for name in ("outputs", "sums", "counts", "epoch")
        )
        begins = given["epoch"] > epoch
        mean = jnp.where(counts[:, None] > 0, sums / jnp.maximum(counts, 1)[:, None], old)
        outputs = jnp.where(begins, mean, old)
        own = jax.nn.softmax(given["teacher_logits"].astype(sums.dtype) / self.teacher_temperature)
        found = _by_class(given["classes"], given["where"] & given["labelled"], lax.stop_gradient(own), classes)
        found = found if given["axis_name"] is None else lax.psum(found, given["axis_name"])
        self.put_variable("memory", "outputs", outputs)
        self.put_variable("memory", "sums", jnp.where(begins, 0, sums) + found[0])
        self.put_variable("memory", "counts", jnp.where(begins, 0, counts) + found[1])
        self.put_variable("memory", "epoch", jnp.maximum(given["epoch"], epoch))
        return {"class_outputs": outputs}


class ClassRelations(Adapter):
    """The costs of carrying one class to another, from the teacher's vectors of images of each class.

    Lv et al., "Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation" (WKD-L), 2024.

    The warm-up gathers the vectors and trains nothing (`config.warmup.trains = 'distiller'`). The first step after it
    computes the costs, which stay.

    Attributes:
      images: Number of images of each class: the first ones that the warm-up shows.
      sharpness: How fast the costs rise with the distance of two classes; see `kdjax.losses.relation_costs`.
    """

    images: int = 100
    sharpness: float = 1.0

    INITIALIZERS = ((r"vectors|counts|costs|known", zeros),)

    @nn.compact
    def __call__(self, given: Arguments) -> dict:
        """Returns the costs [classes, classes], 0 in the warm-up."""
        teacher, classes = given["teacher_embeddings"], given["teacher_logits"].shape[-1]
        # Statistics, since a memory has its shape before the teacher is known.
        vectors = self.variable("batch_stats", "vectors", jnp.zeros, (classes, self.images, teacher.shape[-1]))
        counts = self.variable("batch_stats", "counts", jnp.zeros, (classes,))
        costs = self.variable("batch_stats", "costs", jnp.zeros, (classes, classes))
        known = self.variable("batch_stats", "known", jnp.zeros, ())
        if self.is_initializing():
            return {"class_costs": costs.value}
        if self.warming_up:
            seen = given["classes"], given["where"] & given["labelled"], lax.stop_gradient(teacher)
            if given["axis_name"] is not None:
                seen = lax.all_gather(seen, given["axis_name"], axis=0, tiled=True)
            vectors.value, counts.value = _filled(vectors.value, counts.value, *seen)
        else:
            made = lambda: losses.relation_costs(vectors.value, counts.value, sharpness=self.sharpness)  # noqa: E731
            costs.value = lax.cond(known.value > 0, lambda: costs.value, made)
            known.value = jnp.ones_like(known.value)
        return {"class_costs": lax.stop_gradient(costs.value)}


def _filled(table: Array, counts: Array, labels: Array, counted: Array, vectors: Array) -> tuple[Array, Array]:
    """Puts the vectors of a batch into the free places of their classes, and counts the places that are taken."""
    classes, places = table.shape[:2]
    members = jax.nn.one_hot(labels, classes, dtype=counts.dtype) * counted[:, None]
    before = jnp.take_along_axis(jnp.cumsum(members, axis=0) - members, labels[:, None], axis=1)[:, 0]
    place = jnp.where(counted, counts[labels] + before, places).astype(jnp.int32)
    table = table.at[labels, place].set(vectors.astype(table.dtype), mode="drop")  # a place beyond the last is none
    return table, jnp.minimum(counts + jnp.sum(members, axis=0), places)


def _by_class(labels: Array, counted: Array, vectors: Array, classes: int) -> tuple[Array, Array]:
    """Returns the sums [classes, dim] and the numbers [classes] of the vectors of each class."""
    members = jax.nn.one_hot(labels, classes, dtype=vectors.dtype) * counted[:, None]
    return jnp.matmul(members.T, vectors, precision="highest"), jnp.sum(members, axis=0)

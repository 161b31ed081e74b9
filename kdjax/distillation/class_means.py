"""The mean of a teacher's vectors in each class, which the warm-up of KD++ gathers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

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


def _by_class(labels: Array, counted: Array, vectors: Array, classes: int) -> tuple[Array, Array]:
    """Returns the sums [classes, dim] and the numbers [classes] of the vectors of each class."""
    members = jax.nn.one_hot(labels, classes, dtype=vectors.dtype) * counted[:, None]
    return jnp.matmul(members.T, vectors, precision="highest"), jnp.sum(members, axis=0)

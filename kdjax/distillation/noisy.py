"""TeKAP's noise, which makes more teachers of one."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from kdjax.distillation.adapters import Adapter, Arguments
from kdjax.randomness import KEY_STREAMS
from kdjax.types import Array


class TeacherNoise(Adapter):
    """Standard normal noise for the teacher's logits, drawn anew for each example in each epoch.

    Hossain et al., "Single Teacher, Multiple Perspectives: Teacher Knowledge Augmentation for Enhanced Knowledge
    Distillation" (TeKAP), ICLR 2025.

    Attributes:
      copies: Number of noisy teachers.
    """

    copies: int = 3

    @nn.compact
    def __call__(self, given: Arguments) -> dict:
        """Returns the noise [batch, copies, classes]."""
        shape = (self.copies, given["teacher_logits"].shape[-1])
        return {"noise": noise_of(given["seed"], given["epoch"], given["index"], shape)}


def noise_of(seed: Array, epoch: Array, index: Array, shape: tuple[int, ...]) -> Array:
    """Returns standard normal numbers [batch, *shape], a function of the seed, the epoch and the example.

    Args:
      seed: [] integer in [0, 2^32), the run's.
      epoch: [] integer.
      index: [batch] rows of the examples in the full data set.
      shape: Shape of an example's numbers.
    """
    key = jax.random.key(jnp.asarray(seed, jnp.uint32), impl="threefry2x32")
    key = jax.random.fold_in(jax.random.fold_in(key, KEY_STREAMS["noise"]), epoch)
    return jax.vmap(lambda row: jax.random.normal(jax.random.fold_in(key, row), shape, jnp.float32))(index)

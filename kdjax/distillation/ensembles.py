"""Makes one teacher of several, for losses that read logits alone."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from kdjax import randomness
from kdjax.distillation.inputs import TeacherOutput
from kdjax.errors import UserError
from kdjax.types import Array, TopK


def make_ensemble(
    teachers: Mapping[str, TeacherOutput], ensemble: str, index: Array, visit: Array, seed: Array
) -> TeacherOutput | None:
    """Makes one teacher's output of several, by their weights.

    Args:
      teachers: Name -> output of each teacher.
      ensemble: 'logits' or 'probs' for the mean of either, 'choice' for one teacher drawn for each example, 'held_out'
        for the mean of the probabilities of those that were not trained on the example (of all teachers where there is
        none), or 'losses', where the losses are averaged instead.
      index: [batch] rows of the examples in the full data set.
      visit: [] or [batch] pass over the data that each example is in.
      seed: [] seed of the run.

    Returns:
      The first teacher's output with the logits of the ensemble; None where each loss is averaged over the teachers
      instead: for 'losses', for one teacher, and for teachers of different classes or of top classes.

    Raises:
      UserError: The ensemble is 'held_out', and the teachers have different classes.
    """
    shapes = {None if isinstance(one.logits, TopK) else one.logits.shape for one in teachers.values()}
    same_classes = len(shapes) == 1 and None not in shapes
    if ensemble == "held_out" and not same_classes:
        raise UserError("config.ensemble 'held_out' needs teachers of the same classes.")
    if ensemble == "losses" or len(teachers) < 2 or not same_classes:
        return None
    logits = jnp.stack([jnp.asarray(teacher.logits) for teacher in teachers.values()])
    weights = jnp.stack([jnp.asarray(teacher.weight, logits.dtype) for teacher in teachers.values()])
    shares = weights / jnp.sum(weights)
    if ensemble == "logits":
        joined = jnp.tensordot(shares, logits, 1)
    elif ensemble == "probs":
        joined = _mean_probabilities(logits, shares[:, None])
    elif ensemble == "held_out":
        held_out = jnp.stack([jnp.asarray(teacher.held_out) for teacher in teachers.values()])
        counted = jnp.where(jnp.any(held_out, axis=0), held_out, True) * weights[:, None]
        joined = _mean_probabilities(logits, counted / jnp.sum(counted, axis=0))
    else:
        drawn = randomness.unit(randomness.bits(index, visit, seed, "teacher", 1, jnp)[:, 0], jnp)
        chosen = jnp.sum(drawn[:, None] >= jnp.cumsum(shares)[:-1], axis=1)
        joined = jnp.take_along_axis(logits, chosen[None, :, None], axis=0)[0]
    return next(iter(teachers.values()))._replace(logits=joined, weight=jnp.ones(()))


def _mean_probabilities(logits: Array, shares: Array) -> Array:
    """Returns the logarithm of the mean probabilities [batch, classes].

    Args:
      logits: [teachers, batch, classes].
      shares: [teachers, batch or 1], of sum 1 over the teachers.
    """
    return jax.nn.logsumexp(jax.nn.log_softmax(logits) + jnp.log(shares)[..., None], axis=0)

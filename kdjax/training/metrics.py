"""Metrics: what training and evaluation log, as (sum, count) pairs that merge exactly.

To log another quantity, add it to `train_metrics` or `eval_metrics`, or to DIAGNOSTICS in
`kdjax.distillation.diagnostics`. The names that a run logs are read off these functions.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import losses
from kdjax.distillation.diagnostics import diagnose
from kdjax.training.spec import EvalSpec, Spec
from kdjax.training.structure import combine
from kdjax.types import Array, Metrics

NEVER = np.iinfo(np.int32).max
# config.select_by -> the name of the measure in `eval_metrics`, and 1 where the highest is the best, -1 for the lowest
SELECTED_BY = {"accuracy": ("accuracy", 1), "nll": ("loss", -1), "brier": ("brier", -1)}


class Sums(NamedTuple):
    """The sums of a stretch of steps.

    Attributes:
      metrics: Name -> (sum, count).
      first_bad_step: [] int32, the first step whose loss was not finite, `NEVER` if there was none.
    """

    metrics: Metrics
    first_bad_step: Array


class Observed(NamedTuple):
    """What a training step shows to its metrics; everything but the losses is one device's share.

    Attributes:
      loss: [] total loss, the same on every device.
      terms: Name -> [] mean of each loss of the phase, the same on every device.
      logits: [batch, classes] of the student.
      teacher_logits: Teacher -> [batch, classes].
      labels: [batch] int32.
      mask: [batch] bool, False for padding.
      labelled: [batch] bool, False where an example has no label.
    """

    loss: Array
    terms: dict[str, Array]
    logits: Array
    teacher_logits: dict[str, Array]
    labels: Array
    mask: Array
    labelled: Array


class Scored(NamedTuple):
    """What an evaluation step shows to its metrics: one device's share.

    Attributes:
      logits: [batch, classes].
      labels: [batch] int32.
      soft: [batch, classes] distributions of the data, None where it has none.
      mask: [batch] bool, False for padding.
      index: [batch] int32, rows of the data set.
    """

    logits: Array
    labels: Array
    soft: Array | None
    mask: Array
    index: Array


def train_metrics(observed: Observed, config_losses: Mapping[str, Mapping[str, Any]], diagnostics: bool) -> Metrics:
    """Returns one device's share of what a training step logs.

    Args:
      observed: What the step shows.
      config_losses: `config.losses`, numbers traced or not.
      diagnostics: Whether the rows of DIAGNOSTICS are logged too.
    """
    # Scalars on which all devices agree count for the local examples.
    local = jnp.sum(observed.mask).astype(observed.loss.dtype)
    scalars = {"loss": observed.loss, **{f"losses/{key}": value for key, value in observed.terms.items()}}
    found = {name: (value * local, local) for name, value in scalars.items()}
    nothing = jnp.zeros_like(local)
    found |= {f"losses/{key}": (nothing, nothing) for key in config_losses if key not in observed.terms}  # other phases
    found |= masked_sums({"accuracy": accuracy(observed.logits, observed.labels)}, observed.mask & observed.labelled)
    if diagnostics:
        found |= masked_sums(diagnose(observed.logits, observed.teacher_logits, config_losses), observed.mask)
    return found


def eval_metrics(scored: Scored, unseen: tuple[int, ...], shared: tuple[int, ...] | None = None) -> Metrics:
    """Returns one device's share of what an evaluation reports.

    Args:
      scored: What the step shows.
      unseen: Classes that training never showed, whose accuracy is reported apart.
      shared: Rows without which the accuracy is also reported; None if it is not.
    """
    logits, labels, mask = scored.logits, scored.labels, scored.mask
    per_example = {"loss": losses.cross_entropy(logits, labels), "accuracy": accuracy(logits, labels)}
    per_example["brier"] = losses.softmax_mse(logits, labels, reduction="class_sum")
    if logits.shape[-1] > 5:
        per_example["top5"] = top5(logits, labels)
    if scored.soft is not None:
        per_example["distance"] = losses.softmax_mse(logits, scored.soft, reduction="class_sum")
    found = masked_sums(per_example, mask)
    if unseen:
        is_unseen = jnp.isin(labels, jnp.asarray(unseen))
        found |= masked_sums({"accuracy_unseen": per_example["accuracy"]}, mask & is_unseen)
        found |= masked_sums({"accuracy_seen": per_example["accuracy"]}, mask & ~is_unseen)
    if shared is not None:
        is_shared = jnp.isin(scored.index, jnp.asarray(shared, jnp.int32))
        found |= masked_sums({"accuracy_unshared": per_example["accuracy"]}, mask & ~is_shared)
    return found


def zero_train_sums(spec: Spec, numbers: Mapping[str, Any]) -> Sums:
    """Returns the sums of no training step, as host arrays.

    Args:
      spec: Spec of either phase of the run; both log the same names.
      numbers: The numbers of the run's config.
    """
    logits, flags = _floats(1, spec.num_classes), jax.ShapeDtypeStruct((1,), bool)
    observed = Observed(
        loss=_floats(),
        terms={term.key: _floats() for term in spec.terms},
        logits=logits,
        teacher_logits={teacher.name: logits for teacher in spec.teachers},
        labels=jax.ShapeDtypeStruct((1,), np.int32),
        mask=flags,
        labelled=flags,
    )

    def names_of(observed: Observed, numbers: Mapping[str, Any]) -> Metrics:
        return train_metrics(observed, combine(spec.structure, numbers)["losses"], spec.diagnostics)

    return _zeros(jax.eval_shape(names_of, observed, numbers))


def zero_eval_sums(spec: EvalSpec) -> Sums:
    """Returns the sums of no evaluation step, as host arrays."""
    logits, labels = _floats(1, spec.num_classes), jax.ShapeDtypeStruct((1,), np.int32)
    scored = Scored(logits, labels, logits if spec.soft else None, jax.ShapeDtypeStruct((1,), bool), labels)
    return _zeros(jax.eval_shape(lambda scored: eval_metrics(scored, spec.unseen, spec.shared), scored))


def _floats(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(float))


def _zeros(metrics: Metrics) -> Sums:
    zero = np.zeros((), jax.dtypes.canonicalize_dtype(float))
    return Sums({name: (zero, zero) for name in metrics}, np.array(NEVER, np.int32))


def merge(a: Sums, b: Sums) -> Sums:
    """Adds the sums of two stretches of steps."""
    return Sums(jax.tree.map(jnp.add, a.metrics, b.metrics), jnp.minimum(a.first_bad_step, b.first_bad_step))


def means(metrics: Metrics) -> dict[str, float]:
    """Turns fetched sums into plain means; an empty count gives 0."""
    return {name: float(total) / max(float(count), 1.0) for name, (total, count) in metrics.items()}


def masked_sums(per_example: Mapping[str, Array], mask: Array) -> Metrics:
    """Returns (sum, count) of values [batch] over the examples where the mask [batch] is True."""
    return {
        name: (jnp.sum(jnp.where(mask, value, 0)), jnp.sum(mask).astype(value.dtype))
        for name, value in per_example.items()
    }


def accuracy(logits: Array, labels: Array) -> Array:
    """Returns [batch] 1.0 where the largest logit is the label's, else 0.0."""
    return (jnp.argmax(logits, axis=-1) == labels).astype(logits.dtype)


def top5(logits: Array, labels: Array) -> Array:
    """Returns [batch] 1.0 where fewer than five logits exceed the label's, else 0.0."""
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    return (jnp.sum(logits > own, axis=-1) < 5).astype(logits.dtype)

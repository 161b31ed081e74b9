"""What travels between the rooms: batches, model outputs and metrics. No logic."""

from typing import Any, NamedTuple

Array = Any  # jax.Array, numpy.ndarray or a tracer


class Batch(NamedTuple):
    """One device's share of a step.

    A resident source sends indices only; a stream sends the arrays as well.

    Attributes:
      index: [batch] int32, the example's row in the full set: what random keys are made of.
      epoch: [] int32.
      mask: [batch] bool, False for padding that no mean may see.
      labelled: [batch] bool, False where the label must not be used.
      images: [batch, ...] in the stored type, or None when the set is resident; followed by the partners' where a view
        mixes, and so are labels and soft.
      labels: [batch] int32, or None when the set is resident.
      soft: [batch, classes] target distributions, or None.
      visit: [batch] int32, which pass over the data the example is in: what random keys are made of too; None for the
        epoch.
      partner: [batch] int32, whom the example is mixed with, None where no view mixes.
    """

    index: Array
    epoch: Array
    mask: Array
    labelled: Array
    images: Array | None = None
    labels: Array | None = None
    soft: Array | None = None
    visit: Array | None = None
    partner: Array | None = None


class ModelOutput(NamedTuple):
    """What every network returns.

    Attributes:
      logits: [batch, classes].
      features: stage name -> activations, in the order of depth when iterated in the model.
      pooled: [batch, dim], what the classifier reads; None where a model has no such vector.
    """

    logits: Array
    features: dict[str, Array] = {}
    pooled: Array | None = None


Metrics = dict[str, tuple[Array, Array]]  # name -> (sum, count): adding them merges batches exactly

"""The records that travel between the rooms: batches, model outputs and metrics. No logic."""

from typing import Any, NamedTuple

Array = Any  # jax.Array, numpy.ndarray or a tracer
Device = Any  # jax.Device
Config = Any  # ml_collections.ConfigDict, whose fields a type checker does not know


class Batch(NamedTuple):
    """One device's share of a step. A resident data set sends indices only; a stream sends the arrays as well.

    Attributes:
      index: [batch] int32 rows of the examples in the full set; random keys are made of them.
      epoch: [] int32.
      mask: [batch] bool, False for padding, which no mean may include.
      labelled: [batch] bool, False where the label must not be used.
      images: [batch, ...] in the stored type, None when the set is resident. Where a view mixes, the images of the
        partners follow, and so do their labels and soft targets.
      labels: [batch] int32, None when the set is resident.
      soft: [batch, classes] target distributions, None where there are none.
      visit: [batch] int32, which pass over the data each example is in; random keys are made of it too. None stands for
        the epoch.
      partner: [batch] int32 rows that the examples are mixed with, None where no view mixes.
      outputs: Name -> [batch, classes] logits of each teacher whose outputs are read from a large file.
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
    outputs: dict[str, Array] | None = None


class MaterializedBatch(NamedTuple):
    """The arrays of a batch, in one form for resident and streamed data.

    Attributes:
      images: [rows or batch, ...] in the stored type.
      rows: [batch] int32, which of `images` the batch reads.
      labels: [batch] int32.
      soft: [batch, classes] target distributions, None where there are none.
    """

    images: Array
    rows: Array
    labels: Array
    soft: Array | None


class ModelOutput(NamedTuple):
    """What every network returns.

    Attributes:
      logits: [batch, classes].
      features: Stage -> activations, from shallow to deep.
      pooled: [batch, dim] the vector that the classifier reads, None where a model has no such vector.
    """

    logits: Array
    features: dict[str, Array] = {}
    pooled: Array | None = None


class TopK(NamedTuple):
    """A teacher's output, of which only the k most probable classes were kept.

    Attributes:
      indices: [..., k] integer classes, each at most once in a row, in any order.
      log_probs: [..., k] natural logarithms of the probabilities that the whole output gives them, so that they say
        how much mass the other classes have. Logits become these by subtracting the logarithm of the sum of the
        exponentials of all logits.
    """

    indices: Array
    log_probs: Array


class Sampled(NamedTuple):
    """A teacher's output, of which some classes were drawn at random; made by `kdjax.losses.sampled_teacher`.

    Attributes:
      indices: [..., n] integer classes; the same class may stand in a row more than once.
      log_probs: [..., n] natural logarithms of the probabilities that the teacher gives them.
      weights: [..., n] what each counts, so that the weights of a class add up to its probability on average.
    """

    indices: Array
    log_probs: Array
    weights: Array


Metrics = dict[str, tuple[Array, Array]]  # name -> (sum, count): adding them merges batches exactly

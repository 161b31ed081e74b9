"""What shapes a compiled step, and what a step reads and never changes."""

from typing import Any, NamedTuple

import flax.linen as nn

from kdjax import models
from kdjax.data import Stored
from kdjax.distillation.terms import Term
from kdjax.training.freezing import Freezing
from kdjax.training.schedules import Schedule
from kdjax.training.structure import Structure
from kdjax.types import Array, Batch

Model = nn.Module | models.FeatureExtractor


class Fixed(NamedTuple):
    """What a step reads and never changes, the same on every device.

    Attributes:
      teachers: Name -> variables of each teacher.
      arrays: The resident data set {'images', 'labels', 'soft'}, None when batches carry their arrays.
      numbers: The config's floats and the seeds, in the places that the structure leaves open; a tuple of such
        mappings where members of a population are unrolled.
      logits: Name -> [rows of the data set, classes] logits of each teacher whose view never changes; of a teacher that
        is a file its outputs, [rows of the data set, views, classes] or a TopK as well.
      held_out: Name -> [rows of the data set] bool, whether a teacher was not trained on the row, for the ensemble
        'held_out'.
    """

    teachers: dict[str, Any]
    arrays: dict[str, Array] | None
    numbers: Any
    logits: dict[str, Array] = {}
    held_out: dict[str, Array] = {}


class StoredSpec(NamedTuple):
    """The part of a teacher's file of outputs that shapes a compiled step.

    Attributes:
      views: Outputs for each example, of which a visit takes one in turn; 0 where there is no axis for them.
      top: The number of top classes; 0 for logits of all.
      in_batch: Whether batches bring the outputs; otherwise all are on the devices.
    """

    views: int = 0
    top: int = 0
    in_batch: bool = False


class SpecTeacher(NamedTuple):
    """The part of a teacher that shapes a compiled step.

    Attributes:
      name: Its name in config.teachers.
      model: Its network; None where its logits are cached or stored, so that runs with different teachers share a step.
      output: What its logits mean, 'softmax' or 'clipped_logits'.
      view: The view that it is shown.
      num_classes: The number of its logits.
      classes: The columns of its logits that are the data's classes, () for all.
      stored: Its file of outputs, None for a network.
    """

    name: str
    model: Model | None
    output: str
    view: str
    num_classes: int
    classes: tuple[int, ...] = ()
    stored: StoredSpec | None = None

    @property
    def label(self) -> str:
        """Its name in config.teachers; the teachers of a population are numbered before it."""
        return self.name.rpartition(":")[2]

    @property
    def runs(self) -> bool:
        """Whether the step runs its network."""
        return self.model is not None

    @property
    def cached(self) -> bool:
        """Whether its logits over the training set are on the devices before the first step: computed once, or read."""
        return self.model is None and not self.in_batch

    @property
    def in_batch(self) -> bool:
        """Whether batches bring its logits."""
        return self.stored is not None and self.stored.in_batch


class Spec(NamedTuple):
    """What shapes a compiled step: hashable, and equal for two runs that may share one compilation.

    Attributes:
      model: The network that is trained.
      teachers: Its teachers, in the config's order.
      ensemble: How several teachers are made into one where a loss reads logits alone.
      teacher_batch_norm: Statistics that teachers use: 'running' or those of the 'batch'.
      structure: The traced sections of the config, with holes for their numbers.
      schedule: The schedule of the learning rate.
      stored: How the data's stored values become network inputs.
      view: The view that the student is shown.
      targets: What losses take as labels: 'labels' or 'soft'.
      num_classes: Number of classes of the data.
      unlabelled: Whether some training examples have no label.
      phase: 'main', or 'warmup' for the phase before it.
      terms: The losses of the phase.
      freezing: Which parameters the phase trains.
      first_epoch: The epoch that the phase begins with.
      steps_per_epoch: Full batches in an epoch.
      sync_batch_norm: Whether batch statistics are taken over the global batch.
      unbiased_variance: Whether the running variance of BatchNorm is the unbiased one, as in PyTorch.
      diagnostics: Whether to log the quantities in DIAGNOSTICS.
      platform: Platform of the devices, 'cpu', 'gpu' or 'tpu', for which convolutions are written.
    """

    model: Model
    teachers: tuple[SpecTeacher, ...]
    ensemble: str
    teacher_batch_norm: str
    structure: Structure
    schedule: Schedule
    stored: Stored
    view: str
    targets: str
    num_classes: int
    unlabelled: bool
    phase: str
    terms: tuple[Term, ...]
    freezing: Freezing
    first_epoch: int
    steps_per_epoch: int
    sync_batch_norm: bool
    unbiased_variance: bool
    diagnostics: bool
    platform: str


class StepContext(NamedTuple):
    """What every part of a training step reads.

    Attributes:
      batch: One device's share of the batch.
      config: The traced sections of the config, with the numbers in their places.
      spec: What shapes the step.
      axis_name: The mapped axis of the devices, None outside one.
    """

    batch: Batch
    config: dict[str, Any]
    spec: Spec
    axis_name: str | None

    @property
    def visit(self) -> Array:
        """The pass over the data that each example is in, [] or [batch]."""
        return self.batch.epoch if self.batch.visit is None else self.batch.visit

    @property
    def sync_axis(self) -> str | None:
        """The axis over which batch statistics are taken, None for each device's own."""
        return self.axis_name if self.spec.sync_batch_norm else None


class EvalSpec(NamedTuple):
    """What shapes a compiled evaluation.

    Attributes:
      model: The network.
      stored: How the data's stored values become network inputs.
      num_classes: Number of classes of the data.
      unseen: Classes that training never showed, whose examples are also scored apart.
      soft: Whether outputs are also compared with the data's distributions.
      shared: Rows without which the accuracy is also reported; None if it is not.
    """

    model: Model
    stored: Stored
    num_classes: int
    unseen: tuple[int, ...] = ()
    soft: bool = False
    shared: tuple[int, ...] | None = None

"""What shapes a compiled step, and what it reads and never changes."""

from typing import Any, NamedTuple

import flax.linen as nn

from kdjax import models
from kdjax.training.structure import Structure


class Fixed(NamedTuple):
    """What a step reads and never changes, the same on every device.

    Attributes:
      teachers: name -> variables.
      arrays: the resident data set {'images', 'labels', 'soft'}, or None when batches carry their arrays.
      numbers: the config's floats and the seed, as the structure's holes want them.
    """

    teachers: dict
    arrays: Any
    numbers: dict


class SpecTeacher(NamedTuple):
    """What of a teacher shapes a compiled step.

    Attributes:
      name: in config.teachers.
      model: its network.
      output: what its logits mean, 'softmax' or 'clipped_logits'.
      view: that it sees.
      classes: columns of its logits that are the data's classes, () for all.
    """

    name: str
    model: nn.Module | models.FeatureExtractor
    output: str
    view: str
    classes: tuple[int, ...] = ()


class Spec(NamedTuple):
    """What shapes a compiled step: hashable, equal for two runs that may share one compilation.

    Attributes:
      model: the network that is trained.
      teachers: of the config, in its order.
      ensemble: how they join where a loss reads logits alone.
      teacher_batch_norm: 'running' or 'batch' statistics in them.
      structure: the traced sections of the config with holes for their numbers.
      stored: how the data's stored values become network inputs.
      view: the student's augmentation.
      targets: 'labels' or 'soft'.
      num_classes: of the data.
      unlabelled: whether some training examples have no label.
      phase: 'main' or 'warmup', in which other terms count and other parts move.
      terms: names of the losses of this phase.
      first_epoch: that the phase begins with.
      moves: what the phase trains: 'all', the student's 'body', or the 'distiller' alone.
      steps_per_epoch: full batches in an epoch.
      sync_batch_norm: whether batch statistics are those of the global batch.
      unbiased_variance: whether BatchNorm's running variance is PyTorch's.
      trainable: 'all' or 'head'.
      head: name of the classifier among the parameters.
      diagnostics: whether to log entropies and weights.
    """

    model: nn.Module | models.FeatureExtractor
    teachers: tuple[SpecTeacher, ...]
    ensemble: str
    teacher_batch_norm: str
    structure: Structure
    stored: Any
    view: str
    targets: str
    num_classes: int
    unlabelled: bool
    phase: str
    terms: tuple[str, ...]
    first_epoch: int
    moves: str
    steps_per_epoch: int
    sync_batch_norm: bool
    unbiased_variance: bool
    trainable: str
    head: str
    diagnostics: bool

"""What losses are offered: the record that a step fills in, and the names of the arguments that a loss may take."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from kdjax.types import Array, ModelOutput, TopK

# A loss takes any of these by name; every other parameter in its signature is a hyper-parameter.
FROM_BATCH = ("logits", "student_logits", "labels", "index", "where", "axis_name")
FROM_TEACHER = ("teacher_logits",)
FROM_MAPS = ("student_features", "teacher_features", "margins")
FROM_VECTORS = ("student_embeddings", "teacher_embeddings")
FROM_BRANCHES = ("auxiliary", "student_auxiliary", "teacher_auxiliary")  # classifiers of rotated images
FROM_VIEWS = ("student_rotated", "teacher_rotated", "student_views", "teacher_views")  # of rotated images
FROM_NETWORK = ("parameters", "batch_statistics", "branches", "views")  # of the network that is trained
FROM_MEMORY = ("centroids", "remembered")  # of its own earlier outputs, which an adapter carries along
FROM_ADAPTER = (
    *("variances", "student_projections", "student_scores", "teacher_scores", "normalizers", "examples"),
    *("student_tokens", "teacher_tokens", "generated_map", "teacher_map", "masked"),
    *("stage_logits", "student_vectors", "teacher_vectors", "class_means", "learned_temperature", "crossed_logits"),
    *("noise", "class_outputs", "class_costs"),
    *("student_regions", "teacher_regions", "student_class_maps", "teacher_class_maps"),
)
FROM_STUDENT_ADAPTER = (
    "stage_logits",
    "learned_temperature",
    "noise",
    "class_outputs",
)  # those that need no map of the teacher
INPUTS = (
    *(FROM_BATCH + FROM_NETWORK + FROM_MEMORY + FROM_TEACHER),
    *(FROM_MAPS + FROM_VECTORS + FROM_BRANCHES + FROM_VIEWS + FROM_ADAPTER),
)


Head = tuple[Array, Array]  # kernel [dim, classes] and bias [classes] of a linear classifier


class TeacherOutput(NamedTuple):
    """The output of one teacher for a batch, outside the gradient.

    Attributes:
      logits: [batch, classes] as the losses read them: the columns of the data's classes, at the teacher's own
        temperature; a TopK of [batch, k] for a teacher of which only the top classes were stored.
      weight: [] share of this teacher among several.
      output: The network's whole output, as it is.
      norms: Stage -> (scale, bias) of the BatchNorm before the stage's ReLU, where the network names them.
      held_out: [batch] bool, whether the teacher was not trained on the example; None where that is not asked for.
      head: (kernel [dim, classes], bias [classes]) of its linear classifier, read as the logits are; None without one.
    """

    logits: Array | TopK
    weight: Array
    output: ModelOutput
    norms: dict[str, tuple[Array, Array]]
    held_out: Array | None = None
    head: Head | None = None


class LossInputs(NamedTuple):
    """What the losses of a step are offered: one device's share of the batch, and how devices reduce it.

    Attributes:
      output: The student's output.
      targets: What a loss takes as `labels`: [batch] int32, or [batch, classes] distributions.
      labels: [batch] int32 classes, 0 where an example has none.
      index: [batch] int32 rows in the full data set.
      mask: [batch] bool, False for examples that no mean may include.
      labelled: [batch] bool, False where an example has no label.
      epoch: [] int32.
      seed: [] uint32 seed of the run.
      teachers: Name -> output of each teacher.
      ensemble: One output made from all teachers, for losses that read logits alone; None where each loss is averaged
        over the teachers instead.
      axis_name: The mapped axis of the devices, None outside one.
      sync_axis: The axis over which adapters take their batch statistics, None for each device's own.
      unbiased: Whether the running variance of BatchNorm is the unbiased one, as in PyTorch.
      parameters: Parameters of the student.
      batch_statistics: Its running statistics after this step.
      head: (kernel [dim, classes], bias [classes]) of its linear classifier, None without one.
    """

    output: ModelOutput
    targets: Array
    labels: Array
    index: Array
    mask: Array
    labelled: Array
    epoch: Array
    seed: Array
    teachers: dict[str, TeacherOutput]
    ensemble: TeacherOutput | None = None
    axis_name: str | None = None
    sync_axis: str | None = None
    unbiased: bool = False
    parameters: Mapping[str, Any] = {}
    batch_statistics: Mapping[str, Any] = {}
    head: Head | None = None

"""A student that reuses its teacher's classifier (SimKD): what the plan of its run fills in from the teacher."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from kdjax import models
from kdjax.distillation.stages import last_map
from kdjax.errors import UserError
from kdjax.training.forward import head_of
from kdjax.training.teachers import Teacher
from kdjax.types import Config

NAME = "simkd"  # the row of MODELS


def fitted_to_teacher(config: Config, teachers: Mapping[str, Teacher], input_shape: Sequence[int]) -> dict[str, Any]:
    """Returns config.model, as plain mappings, with width and size of the teacher's last map where it leaves them 0.

    Args:
      config: Resolved config.
      teachers: Teachers by their names in it.
      input_shape: Shape of a batch of images, batch axis included.

    Raises:
      UserError: The student reuses a classifier, and there is not one teacher with a linear one after its last map.
    """
    model = config.model.to_dict()
    if model["name"] != NAME or not teachers:
        return model
    teacher, label = _only(teachers), next(iter(teachers))
    channels, size = _last_map(teacher, input_shape)
    head = head_of(teacher.model, teacher.variables["params"])
    if head is None or head[0].shape[0] != channels:
        raise UserError(
            f"config.model '{NAME}' reuses the classifier of teacher '{label}', which must be a linear one, 'fc', of "
            f"the mean of its last map ({channels} channels); take another teacher or method."
        )
    args = model["args"]
    return {**model, "args": {**args, "width": args.get("width") or channels, "size": args.get("size") or size}}


def with_teachers_classifier(
    variables: Mapping[str, Any], config: Config, teachers: Mapping[str, Teacher]
) -> dict[str, Any]:
    """Returns a student's initial variables with the teacher's classifier in them, if the student reuses one.

    Args:
      variables: {'params': ..., 'batch_stats': ...}, NumPy arrays.
      config: Resolved config.
      teachers: Teachers by their names in it.

    Raises:
      UserError: The classifiers have different shapes.
    """
    if config.model.name != NAME or not teachers:
        return dict(variables)
    head = head_of(_only(teachers).model, _only(teachers).variables["params"])
    assert head is not None, "checked by fitted_to_teacher"
    (label,), own = teachers, variables["params"]["fc"]
    columns = list(config.teachers[label].classes) or slice(None)
    kernel, bias = np.asarray(head[0])[:, columns], np.asarray(head[1])[columns]
    if kernel.shape != own["kernel"].shape:
        raise UserError(
            f"config.model '{NAME}' has a classifier {own['kernel'].shape}, and that of teacher '{label}' is "
            f"{kernel.shape}; leave config.model.args.width out, and name the data's classes in "
            f"config.teachers.{label}.classes."
        )
    head = {"kernel": kernel.astype(own["kernel"].dtype), "bias": bias.astype(own["bias"].dtype)}
    return {**variables, "params": {**variables["params"], "fc": head}}


def _only(teachers: Mapping[str, Teacher]) -> Teacher:
    if len(teachers) != 1:
        raise UserError(f"config.model '{NAME}' reuses the classifier of one teacher, not of {', '.join(teachers)}.")
    (label, teacher), *_ = teachers.items()
    if teacher.model is None:
        raise UserError(
            f"config.model '{NAME}' reuses the classifier of teacher '{label}', which is a file; name a run."
        )
    return teacher


def _last_map(teacher: Teacher, input_shape: Sequence[int]) -> tuple[int, int]:
    """Returns channels and height of a teacher's last map, 0 and 0 where it has none."""
    found: list[Any] = []  # while tracing, since what eval_shape returns has its features sorted by name

    def note(variables: Any, images: Any) -> None:
        found.append(last_map(models.call(teacher.model, variables, images, train=False)[0]))

    images = jax.ShapeDtypeStruct(tuple(input_shape), jax.dtypes.canonicalize_dtype(float))
    jax.eval_shape(note, teacher.variables, images)
    return (0, 0) if found[0] is None else (found[0].shape[-1], found[0].shape[1])

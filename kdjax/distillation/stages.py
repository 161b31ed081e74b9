"""Which maps of student and teacher a term compares, by the names of their stages."""

from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp

from kdjax.errors import UserError, nearest
from kdjax.types import Array, ModelOutput

PREACT = "_preact"  # the ending of the name of a map before its ReLU
POOLED = "pooled"

Pairs = list[tuple[str, str]]  # (student's stage, teacher's stage)


def pair_stages(
    stages: Sequence[str | tuple[str, str]],
    default: Callable[[Sequence[str]], list[str]],
    student: ModelOutput,
    teacher: ModelOutput,
    field: str,
) -> Pairs:
    """Returns the names of the maps that a term compares.

    Args:
      stages: The term's stages in the config: names that both networks have, or (student's, teacher's) pairs; () for
        the method's default stages, which are paired in order and must be equally many.
      default: Picks the method's default stages from the names of a network's maps.
      student: The student's output.
      teacher: The teacher's output.
      field: The term's place in the config, for messages.

    Raises:
      UserError: A network lacks a named map, or the default stages are not equally many.
    """
    sides = [_map_names(output) for output in (student, teacher)]
    if stages:
        pairs: Pairs = [(stage, stage) if isinstance(stage, str) else (stage[0], stage[1]) for stage in stages]
        for pair in pairs:
            for side, names, name in zip(("student", "teacher"), sides, pair, strict=True):
                if name not in (*names, POOLED):
                    raise UserError(f"{field}.stages: the {side} has no map '{name}'.{nearest(name, names)}")
        return pairs
    of_student, of_teacher = (default(names) for names in sides)
    if len(of_student) != len(of_teacher) or not of_student:
        has = (
            f"the student has the maps {', '.join(of_student) or 'none'}, the teacher {', '.join(of_teacher) or 'none'}"
        )
        raise UserError(f"{field}: {has}; say which to compare: {field}.stages = (('stage1', 'stage2'), ...).")
    return list(zip(of_student, of_teacher, strict=True))


def map_of(output: ModelOutput, name: str, preact: bool, owner: str) -> Array:
    """Returns a map of a network by the name of its stage.

    Args:
      output: The network's output.
      name: A stage, or 'pooled' for the pooled vector as a map of one pixel.
      preact: Whether to return the map before its ReLU, where the network offers that.
      owner: The network, for messages, such as 'config.losses.review: the student'.
    """
    if name == POOLED:
        return pooled_vector(output, owner)[:, None, None, :]
    return output.features.get(f"{name}{PREACT}" if preact else name, output.features[name])


def stage_maps(output: ModelOutput) -> tuple[Array, ...]:
    """Returns a network's maps by depth without the stem's; () where it has none."""
    return tuple(output.features[name] for name in _map_names(output) if name != "stem")


def classified_map(output: ModelOutput, name: str) -> Array:
    """Returns a map of a network as its classifier reads it, after the last BatchNorm and ReLU.

    The last map of a pre-activation network is a sum, and only the map before its ReLU has had the BatchNorm. A network
    with one more convolution after its last stage offers that as 'final_preact'.

    Args:
      output: The network's output.
      name: A stage, the last one unless the config names another.
    """
    preact = output.features.get(f"{name}{PREACT}")
    if name == _map_names(output)[-1]:
        preact = output.features.get(f"final{PREACT}", preact)
    return output.features[name] if preact is None else jnp.maximum(preact, 0)


def last_map(output: ModelOutput) -> Array | None:
    """Returns a network's deepest map after its ReLU, None where it has no maps."""
    maps = [leaf for name, leaf in output.features.items() if not name.endswith(PREACT) and leaf.ndim > 3]
    return maps[-1] if maps else None


def pooled_vector(output: ModelOutput, owner: str) -> Array:
    """Returns a network's pooled vector.

    Raises:
      UserError: The network has none; the message begins with `owner`.
    """
    if output.pooled is None:
        raise UserError(f"{owner} has no pooled vector; name one by config.model.pooled.")
    return output.pooled


def branches(output: ModelOutput) -> tuple[Array, ...]:
    """Returns a network's logits of rotated images: its auxiliary classifiers by depth, and the last classifier."""
    names = [name for name in output.features if name.startswith("auxiliary")]
    return (*(output.features[name] for name in names), *([output.features["rotated"]] if names else []))


def student_branches(output: ModelOutput) -> tuple[Array, ...]:
    """Returns the logits of the student-shaped branches of a network's stages, by depth; () where it has none."""
    return tuple(leaf for name, leaf in output.features.items() if name.startswith("branch"))


def margins_of(
    norms: Mapping[str, tuple[Array, Array]], stages: Sequence[str], field: str, margin: Callable[..., Array]
) -> tuple[Array, ...]:
    """Returns OFD's margins of the teacher's maps, from the BatchNorm before each ReLU.

    Args:
      norms: Stage -> (scale, bias) of that BatchNorm.
      stages: The teacher's stages.
      field: The term's place in the config, for messages.
      margin: Computes the margins of a map from (scale, bias).

    Raises:
      UserError: The teacher does not name that layer for one of the maps.
    """
    for stage in stages:
        if stage not in norms:
            raise UserError(
                f"{field}: the teacher names no BatchNorm before the ReLU of '{stage}', which has the margins; "
                "take another teacher or loss."
            )
    return tuple(margin(*norms[stage]) for stage in stages)


def _map_names(output: ModelOutput) -> list[str]:
    return [name for name, leaf in output.features.items() if not name.endswith(PREACT) and len(leaf.shape) == 4]

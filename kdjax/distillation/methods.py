"""What each loss reads of the networks, and what it needs besides arrays: a visible table, one line a method."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from kdjax.distillation import adapters
from kdjax.distillation.contrast import Contrast
from kdjax.errors import UserError, nearest
from kdjax.types import ModelOutput

PREACT = "_preact"  # ends the name of a map before its ReLU
POOLED = "pooled"

Pairs = list[tuple[str, str]]


def all_stages(names: Sequence[str]) -> list[str]:
    """Every map but the stem's."""
    return [name for name in names if name != "stem"]


def stem_and_stages(names: Sequence[str]) -> list[str]:
    """Every map."""
    return list(names)


def second_stage(names: Sequence[str]) -> list[str]:
    """FitNet's hint."""
    return all_stages(names)[1:2]


def last_stage(names: Sequence[str]) -> list[str]:
    """The map that is pooled."""
    return all_stages(names)[-1:]


def stages_and_pooled(names: Sequence[str]) -> list[str]:
    """Every map but the stem's, and the pooled vector as a map of one pixel."""
    return [*all_stages(names), POOLED]


class Method(NamedTuple):
    """How a loss is fed.

    Attributes:
      stages: picks the names of the maps that are paired by default, from all that a network has.
      single: whether the loss takes one map instead of a sequence.
      preact: 'both' reads the maps before their ReLU where a network tells them apart, 'teacher' the teacher's alone.
      embeddings: 'pooled' vectors or the 'last' maps.
      adapter: its trainable part, None for none.
      warmup: the loss of the warm-up, where it is another.
      kept: parts of the adapter that the warm-up alone trains.
    """

    stages: Callable[[Sequence[str]], list[str]] = all_stages
    single: bool = False
    preact: str = ""
    embeddings: str = POOLED
    adapter: type[adapters.Adapter] | None = None
    warmup: str = ""
    kept: tuple[str, ...] = ()


# A loss that is not here takes what its arguments name: all stages, pooled vectors, logits, and trains nothing.
METHODS = {
    "hint": Method(second_stage, single=True, adapter=adapters.Hint),
    "fsp": Method(stem_and_stages),
    "factor_transfer": Method(
        last_stage,
        single=True,
        adapter=adapters.Factors,
        warmup="paraphrase",
        kept=("paraphraser", "paraphraser_decoder"),
    ),
    "activation_boundary": Method(preact="both", adapter=adapters.Connectors),
    "vid": Method(adapter=adapters.Variational),
    "review": Method(stages_and_pooled, preact="teacher", adapter=adapters.Review),
    "ofd": Method(preact="both", adapter=adapters.WidthConnectors),
    "similarity": Method(embeddings="last"),
    "correlation": Method(adapter=adapters.Embeddings),
    "itrd": Method(adapter=adapters.Projection),
    "crd": Method(adapter=Contrast),
}


def method_of(loss: str) -> Method:
    """Returns a loss's row, or the default one."""
    return METHODS.get(loss, Method())


def pair_stages(stages: Sequence, method: Method, student: ModelOutput, teacher: ModelOutput, where: str) -> Pairs:
    """Returns the names of the maps that a term compares, student's and teacher's.

    Args:
      stages: of the config: names that both networks have, or (student's, teacher's) pairs; () for the method's own,
        which are paired in order and must be equally many.
      method: the loss's row.
      student: its output.
      teacher: its output.
      where: the term's path in the config, for messages.

    Raises:
      UserError: a name that a network lacks, or lists of different length.
    """
    sides = [_maps(output) for output in (student, teacher)]
    if stages:
        pairs = [(stage, stage) if isinstance(stage, str) else tuple(stage) for stage in stages]
        for pair in pairs:
            for side, names, name in zip(("student", "teacher"), sides, pair, strict=True):
                if name not in (*names, POOLED):
                    raise UserError(f"{where}.stages: the {side} has no map '{name}'.{nearest(name, names)}")
        return pairs
    ours, theirs = (method.stages(names) for names in sides)
    if len(ours) != len(theirs) or not ours:
        has = f"the student has the maps {', '.join(ours) or 'none'}, the teacher {', '.join(theirs) or 'none'}"
        raise UserError(f"{where}: {has}; say which to compare: {where}.stages = (('stage1', 'stage2'), ...).")
    return list(zip(ours, theirs, strict=True))


def map_of(output: ModelOutput, name: str, preact: bool) -> Any:
    """Returns a map by name, before its ReLU if asked and told apart; the pooled vector as a map of one pixel."""
    if name == POOLED:
        return output.pooled[:, None, None, :]
    return output.features.get(f"{name}{PREACT}" if preact else name, output.features[name])


def _maps(output: ModelOutput) -> list[str]:
    return [name for name, leaf in output.features.items() if not name.endswith(PREACT) and len(leaf.shape) == 4]


def margins_of(norms: Mapping[str, tuple], names: Sequence[str], where: str, margin: Callable) -> tuple:
    """Returns OFD's margins of the teacher's maps, from the BatchNorm before each ReLU.

    Raises:
      UserError: the teacher names no such layer for a map.
    """
    for name in names:
        if name not in norms:
            raise UserError(
                f"{where}: the teacher names no BatchNorm before the ReLU of '{name}', which has the margins; "
                "take another teacher or loss."
            )
    return tuple(margin(*norms[name]) for name in names)

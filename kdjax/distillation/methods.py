"""What each loss reads from the networks and trains besides the student: a visible table, one line a method."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from kdjax.distillation import adapters
from kdjax.distillation.class_means import ClassMeans, ClassOutputs, ClassRelations
from kdjax.distillation.contrast import Contrast
from kdjax.distillation.masked import MaskedGeneration
from kdjax.distillation.noisy import TeacherNoise
from kdjax.distillation.own_outputs import Centroids, Remembered
from kdjax.distillation.stages import POOLED


def all_stages(names: Sequence[str]) -> list[str]:
    """Returns every map except the stem's."""
    return [name for name in names if name != "stem"]


def stem_and_stages(names: Sequence[str]) -> list[str]:
    """Returns every map."""
    return list(names)


def second_stage(names: Sequence[str]) -> list[str]:
    """Returns the map of FitNet's hint."""
    return all_stages(names)[1:2]


def last_stage(names: Sequence[str]) -> list[str]:
    """Returns the map that is pooled."""
    return all_stages(names)[-1:]


def stages_and_pooled(names: Sequence[str]) -> list[str]:
    """Returns every map except the stem's, and the pooled vector as a map of one pixel."""
    return [*all_stages(names), POOLED]


class Method(NamedTuple):
    """How a loss gets its arguments, and what is trained for it.

    Attributes:
      stages: Picks the maps that are paired by default from the names of all maps of a network.
      single: Whether the loss takes one map instead of a sequence of maps.
      preact: 'both' reads the maps of both networks before their ReLU where a network offers them, 'teacher' those of
        the teacher alone.
      embeddings: Whether the loss's vectors are the 'pooled' ones or the 'last' maps.
      adapter: Class of its trainable part, None for none.
      warmup_loss: Name of the loss that replaces it in the warm-up, '' for none.
      warmup_parts: Parts of the adapter that only the warm-up trains; all other parts are trained afterwards.
      classified: Whether the maps are compared as the classifiers read them, after the last BatchNorm and ReLU.
      heads: The networks whose linear classifiers the adapter reads, of 'student' and 'teacher'; each must read the
        mean of the map that is compared.
      gathers: Whether the adapter's memory is filled by the warm-up, so that a config needs one.
    """

    stages: Callable[[Sequence[str]], list[str]] = all_stages
    single: bool = False
    preact: str = ""
    embeddings: str = POOLED
    adapter: type[adapters.Adapter] | None = None
    warmup_loss: str = ""
    warmup_parts: tuple[str, ...] = ()
    classified: bool = False
    heads: tuple[str, ...] = ()
    gathers: bool = False


CLASSIFIED = Method(last_stage, single=True, classified=True)

# A loss without a row takes what its arguments name (all stages, pooled vectors, logits) and has no trainable part.
METHODS = {
    "hint": Method(second_stage, single=True, adapter=adapters.Hint),
    "ickd": Method(last_stage, single=True, adapter=adapters.ChannelProjection),
    "tekap": Method(adapter=TeacherNoise),
    "class_gkl": Method(adapter=ClassOutputs),
    "wkdl": Method(adapter=ClassRelations, gathers=True),
    "ctkd": Method(adapter=adapters.CurriculumTemperature),
    "ofa": Method(adapter=adapters.StageHeads),
    "srrl": CLASSIFIED._replace(adapter=adapters.ThroughTeacher, heads=("teacher",)),
    "simkd": CLASSIFIED,
    "sdd": CLASSIFIED._replace(adapter=adapters.Regions, heads=("student", "teacher")),
    "catkd": CLASSIFIED._replace(adapter=adapters.ClassMaps, heads=("student", "teacher")),
    "fsp": Method(stem_and_stages),
    "factor_transfer": Method(
        last_stage,
        single=True,
        adapter=adapters.Factors,
        warmup_loss="paraphrase",
        warmup_parts=("paraphraser", "paraphraser_decoder"),
    ),
    "activation_boundary": Method(preact="both", adapter=adapters.Connectors),
    "vid": Method(adapter=adapters.Variational),
    "review": Method(stages_and_pooled, preact="teacher", adapter=adapters.Review),
    "ofd": Method(preact="both", adapter=adapters.WidthConnectors),
    "similarity": Method(embeddings="last"),
    "correlation": Method(adapter=adapters.Embeddings),
    "itrd": Method(adapter=adapters.Projection),
    "crd": Method(adapter=Contrast),
    "vitkd": Method(adapter=MaskedGeneration),
    "nd": Method(adapter=ClassMeans, gathers=True),
    "mcmi": Method(adapter=Centroids, gathers=True),
    "consistency": Method(adapter=Remembered),
}


def method_of(loss: str) -> Method:
    """Returns the row of a loss, or the default row."""
    return METHODS.get(loss, Method())

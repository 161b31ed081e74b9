"""Outputs, class-activation maps and overlaps of some runs on their test sets, for the figures of a report."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jax.nn import softmax

from kdjax import analysis
from kdjax.data import Dataset
from kdjax.errors import UserError
from kdjax.inspection.attention import attention
from kdjax.inspection.inspected_run import InspectedRun
from kdjax.inspection.maps import head_maps
from kdjax.inspection.predict import Predictions
from kdjax.store import Store

EXAMPLES = 4
KIND = "class activation"  # of `maps.MAPS`, the maps that a report shows


@dataclasses.dataclass
class Evidence:
    """What some runs computed on one test set.

    Attributes:
      outputs: Run -> its outputs, all for the same examples.
      dataset: Data set of the first run; None if no run could be evaluated.
      examples: Indices into `outputs` of the examples that are shown [examples].
      maps: Run -> class-activation maps of the shown examples in [0, 1] [examples, height, width]; runs without such
        maps are missing.
      overlaps: Pair of runs -> mean IoU of the regions in which their maps are high.
      skipped: Reasons why something is missing, one sentence each.
    """

    outputs: dict[str, Predictions] = dataclasses.field(default_factory=dict)
    dataset: Dataset | None = None
    examples: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, int))
    maps: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    overlaps: dict[tuple[str, str], float] = dataclasses.field(default_factory=dict)
    skipped: list[str] = dataclasses.field(default_factory=list)

    @property
    def correct(self) -> dict[str, np.ndarray]:
        """Run -> whether its prediction is right, bool [test examples]."""
        return {name: outputs.logits.argmax(axis=1) == outputs.labels for name, outputs in self.outputs.items()}


def gather(
    store: Store, names: Mapping[str, Sequence[str]], data_dir: str = "data", examples: int = EXAMPLES
) -> dict[str, Evidence]:
    """Evaluates the last checkpoints of some runs on their test sets.

    Args:
      store: Store that holds the runs.
      names: Label of a test set -> names of runs. A run is skipped if it cannot be evaluated, or if its test examples
        differ from those of the first run.
      data_dir: Directory of the data sets that do not come with kdjax.
      examples: Number of examples to show: half of them the first of different classes, half of them those on which
        the runs' probabilities differ most. With 0 only the outputs are computed, without maps.

    Returns:
      Label of a test set -> what its runs computed.
    """
    return {label: _gather(store, runs, data_dir, examples) for label, runs in names.items()}


def _gather(store: Store, names: Sequence[str], data_dir: str, examples: int) -> Evidence:
    evidence, runs = Evidence(), []
    for name in names:
        try:
            run = InspectedRun(store, name, "test", "last", data_dir)
            _refuse_older_checkpoint(run)
            outputs = run.outputs()
        except UserError as error:
            evidence.skipped.append(f"'{name}': {error}")
            continue
        first = next(iter(evidence.outputs.values()), outputs)
        if not np.array_equal(first.rows, outputs.rows) or not np.array_equal(first.labels, outputs.labels):
            evidence.skipped.append(f"'{name}': its test examples are not those of '{runs[0].name}'.")
            continue
        evidence.outputs[name] = outputs
        runs.append(run)
    if runs:
        evidence.dataset = runs[0].loaded.dataset
        if examples:
            evidence.examples = _choose_examples(list(evidence.outputs.values()), examples)
            _add_maps(evidence, runs, evidence.dataset.input_shape)
    return evidence


def _refuse_older_checkpoint(run: InspectedRun) -> None:
    """Refuses a run whose last checkpoint is damaged: the store then loads an older one, which the result is not of."""
    loaded, expected = run.loaded.network.step, (run.stored.result or {}).get("last", {}).get("step")
    if expected not in (None, loaded):
        raise UserError(
            f"its last checkpoint, of step {expected}, cannot be read; the one of step {loaded} can, but the result is "
            "not of that step."
        )


def _choose_examples(outputs: Sequence[Predictions], number: int) -> np.ndarray:
    """Returns the indices of the first examples of some classes, then of those on which the probabilities differ."""
    probs = np.stack([np.asarray(softmax(own.logits)) for own in outputs])
    first = np.sort(np.unique(outputs[0].labels, return_index=True)[1])[: -(-number // 2)]
    most_different = np.argsort(-probs.var(axis=0).sum(axis=1), kind="stable")
    return np.array(list(dict.fromkeys([*first, *most_different]))[:number])


def _add_maps(evidence: Evidence, runs: Sequence[InspectedRun], shape: tuple[int, ...]) -> None:
    """Adds the maps of the runs whose classifier reads the mean of a feature map, and the overlaps of these maps."""
    if len(shape) != 3:
        return  # the inputs are vectors
    mapped = []
    for run in runs:
        try:
            head = run.head
        except UserError as error:
            evidence.skipped.append(str(error))
            continue
        maps = head_maps(run.loaded, head, run.rows[evidence.examples])[KIND]
        evidence.maps[run.name] = np.asarray(analysis.normalize_maps(analysis.resize_maps(maps, shape[:2])))
        mapped.append(run)
    if len(mapped) > 1:
        for overlap in attention(mapped).overlaps:
            if overlap.map == KIND and len(overlap.runs) == 2:
                evidence.overlaps[overlap.runs[0], overlap.runs[1]] = overlap.iou

"""What a report needs of networks beside their results: outputs on the test set, maps of some images, overlaps."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jax.nn import softmax

from kdjax import analysis
from kdjax.data import Dataset
from kdjax.errors import UserError
from kdjax.inspection.analyze import Seen, attention
from kdjax.inspection.maps import head_maps
from kdjax.inspection.predict import Predictions
from kdjax.store import Store

EXAMPLES = 4


@dataclasses.dataclass
class Evidence:
    """Of some runs on the test split of one data set.

    Attributes:
      outputs: run -> its outputs, all of the same examples.
      dataset: the first run's, None where no run could be looked at.
      examples: indices in `outputs` of those that are shown.
      maps: run -> [examples, height, width] in [0, 1], class-activation maps, of runs that have any.
      overlaps: (run, run) -> mean IoU of the regions where those maps are high.
      skipped: why something is not there, a line each.
    """

    outputs: dict[str, Predictions] = dataclasses.field(default_factory=dict)
    dataset: Dataset | None = None
    examples: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, int))
    maps: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    overlaps: dict[tuple[str, str], float] = dataclasses.field(default_factory=dict)
    skipped: list[str] = dataclasses.field(default_factory=list)

    @property
    def correct(self) -> dict[str, np.ndarray]:
        """Run -> [test examples], whether it is right."""
        return {name: outputs.logits.argmax(axis=1) == outputs.labels for name, outputs in self.outputs.items()}


def gather(
    store: Store, names: Mapping[str, Sequence[str]], data_dir: str = "data", examples: int = EXAMPLES
) -> dict[str, Evidence]:
    """Runs the last checkpoints of some runs over their test split.

    Args:
      store: that has them.
      names: label of a test set -> runs; those that cannot be run, or whose test examples are not the first
        one's, are skipped.
      data_dir: where data sets that are not embedded lie.
      examples: how many are shown: half of them the first of as many classes, half those on which the runs' outputs
        are furthest apart; 0 for outputs alone, without maps.

    Returns:
      Label -> what was seen.
    """
    return {data: _gather(store, runs, data_dir, examples) for data, runs in names.items()}


def _gather(store: Store, names: Sequence[str], data_dir: str, examples: int) -> Evidence:
    found, seen = Evidence(), []
    for name in names:
        try:
            run = Seen(store, name, "test", "last", data_dir)
            _refuse_older(run)
            outputs = run.outputs()
        except UserError as error:
            found.skipped.append(f"'{name}': {error}")
            continue
        first = next(iter(found.outputs.values()), outputs)
        if not np.array_equal(first.rows, outputs.rows) or not np.array_equal(first.labels, outputs.labels):
            found.skipped.append(f"'{name}': its test examples are not those of '{next(iter(found.outputs))}'.")
            continue
        found.outputs[name] = outputs
        seen.append(run)
    if seen:
        found.dataset = seen[0].run.dataset
        if examples:
            found.examples = _chosen(list(found.outputs.values()), examples)
            _look(found, seen)
    return found


def _refuse_older(run: Seen) -> None:
    """A damaged last checkpoint is followed by the one before it, which is not what the run's result is of."""
    found, told = run.run.network.step, (run.stored.result or {}).get("last", {}).get("step")
    if told not in (None, found):
        raise UserError(f"its last checkpoint, of step {told}, cannot be read, and that of step {found} is not it.")


def _chosen(outputs: Sequence[Predictions], number: int) -> np.ndarray:
    said = np.stack([np.asarray(softmax(own.logits)) for own in outputs])
    first = np.sort(np.unique(outputs[0].labels, return_index=True)[1])[: -(-number // 2)]
    apart = np.argsort(-said.var(axis=0).sum(axis=1), kind="stable")
    return np.array(list(dict.fromkeys([*first, *apart]))[:number])


def _look(found: Evidence, seen: Sequence[Seen]) -> None:
    """Adds maps and their overlaps, of runs on images whose classifier reads the mean of a map."""
    shape, looking = found.dataset.input_shape, []
    if len(shape) != 3:
        return  # no images
    for run in seen:
        try:
            head = run.head
        except UserError as error:
            found.skipped.append(str(error))
            continue
        maps = head_maps(run.run, head, run.rows[found.examples])["class activation"]
        found.maps[run.name] = np.asarray(analysis.normalize_maps(analysis.resize_maps(maps, shape[:2])))
        looking.append(run)
    if len(looking) > 1:
        overlaps = [row for row in attention(looking)["overlaps"] if row["map"] == "class activation"]
        pairs = [pair for pair in overlaps if len(pair["runs"]) == 2]
        found.overlaps = {tuple(pair["runs"]): pair["iou"] for pair in pairs}

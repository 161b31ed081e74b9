"""A stored run on one split of its data set, with its outputs computed once and shared by all analyses."""

import functools
from collections.abc import Sequence

import numpy as np

from kdjax.config import order_seed
from kdjax.data import resolve_view
from kdjax.errors import UserError
from kdjax.inspection.maps import Head, find_head
from kdjax.inspection.predict import Predictions, check_split, labelled_rows, load_run, predict
from kdjax.store import Store


class InspectedRun:
    """A loaded run that remembers its outputs.

    Attributes:
      name: Name of the run.
      split: Split that is inspected.
      stored: The run in the store, with its manifest and result.
      loaded: The run's network, config and data set.

    Args:
      store: Store that holds the run.
      name: Name of the run.
      split: 'train', 'validation' or 'test'.
      checkpoint: 'last', 'best' or a step.
      data_dir: Directory of the data sets that do not come with kdjax.

    Raises:
      UserError: The run, the checkpoint, the data set or the split does not exist.
    """

    def __init__(self, store: Store, name: str, split: str, checkpoint: str, data_dir: str):
        self.name, self.split, self.stored = name, split, store.find(name)
        # The outputs are compared with the data set's own distributions, not with the mixed targets of the training.
        self.loaded = load_run(store, name, checkpoint, data_dir, without=("mixed_targets",))
        check_split(name, self.loaded, split)
        self._outputs: dict[tuple[str, str], Predictions] = {}

    @property
    def view(self) -> str:
        """Name of the view that the run was trained on."""
        return resolve_view(self.loaded.dataset, self.loaded.config.data.view)

    @functools.cached_property
    def head(self) -> Head:
        """Source of the run's class-activation maps; raises a UserError if its network has none."""
        return find_head(self.name, self.loaded, self.split)

    @property
    def rows(self) -> np.ndarray:
        """Indices of the split's labelled examples [examples]."""
        return labelled_rows(self.loaded.dataset, self.split)

    def outputs(self, split: str = "", view: str = "none") -> Predictions:
        """Returns the run's outputs on a split under a view; '' is the inspected split. Each is computed once."""
        key = (split or self.split, view)
        if key not in self._outputs:
            run = self.loaded
            options = {"view": view, "seed": order_seed(run.config)}
            self._outputs[key] = predict(run.network, run.dataset, key[0], run.batch_size, run.devices, **options)
        return self._outputs[key]

    def validation(self, view: str = "none") -> Predictions:
        """Returns the outputs on the validation split under a view; raises a UserError if there is no such split."""
        if "validation" not in self.loaded.dataset.splits:
            raise UserError(f"run '{self.name}' has no validation split; train with config.data.validation above 0.")
        return self.outputs("validation", view)


def comparable_outputs(analysis: str, runs: Sequence[InspectedRun]) -> list[Predictions]:
    """Returns the outputs of runs that an analysis compares example by example.

    Args:
      analysis: Name of the analysis, for messages.
      runs: Runs to compare.

    Raises:
      UserError: There are fewer than two runs, or their splits hold different examples or classes.
    """
    if len(runs) < 2:
        raise UserError(f"{analysis} compares runs: name two or more, --runs=a,b.")
    outputs = [run.outputs() for run in runs]
    for run, own in zip(runs[1:], outputs[1:], strict=True):
        if run.loaded.dataset.name != runs[0].loaded.dataset.name or not _same_examples(outputs[0], own):
            raise UserError(
                f"{analysis}: runs '{runs[0].name}' and '{run.name}' have other examples or classes in their split "
                f"'{runs[0].split}'; compare runs of the same data, protocols and config.data.split_seed."
            )
    return outputs


def _same_examples(first: Predictions, second: Predictions) -> bool:
    return (
        first.logits.shape == second.logits.shape
        and np.array_equal(first.rows, second.rows)
        and np.array_equal(first.labels, second.labels)
    )

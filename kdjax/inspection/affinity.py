"""How well runs cope with each other's views: affinity, diversity and the over-fitting gap."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kdjax import analysis
from kdjax.config import OPERATIONAL
from kdjax.data import resolve_view
from kdjax.data.views.names import parse
from kdjax.inspection.inspected_run import InspectedRun
from kdjax.inspection.predict import Predictions


class Affinity(NamedTuple):
    """One run under one view; accuracies are on the validation split, in [0, 1].

    Attributes:
      run: Name of the run.
      trained_on: View that the run was trained on.
      view: View that is measured.
      own: Whether this is the view that the run was trained on.
      base_view: The view's crop alone.
      accuracy: Accuracy under the view.
      accuracy_clean: Accuracy on clean images.
      accuracy_base: Accuracy under the view's crop alone.
      affinity: accuracy / accuracy_clean; the affinity of Gontijo-Lopes et al. (2020) if the run was trained on clean
        images. None if accuracy_clean is 0.
      reference_code_affinity: accuracy / accuracy_base, as the code of Guo et al. prints it. None if accuracy_base is
        0.
      clean_model: Whether the run was trained on clean images.
      overfit_gap: Training accuracy at the end less the best validation accuracy; None for an unfinished run.
      diversity: Diversity of the run's own view (Gontijo-Lopes et al., 2020); None for other views, and if no run with
        the same config but clean images is among the runs.
    """

    run: str
    trained_on: str
    view: str
    own: bool
    base_view: str
    accuracy: float
    accuracy_clean: float
    accuracy_base: float
    affinity: float | None
    reference_code_affinity: float | None
    clean_model: bool
    overfit_gap: float | None
    diversity: float | None


def affinity(runs: Sequence[InspectedRun]) -> list[Affinity]:
    """Measures each run on validation images under the views of all runs.

    Args:
      runs: Runs with a validation split.

    Returns:
      One record for each run and each view that any of the runs was trained on.

    Raises:
      UserError: A run has no validation split.
    """
    views = list(dict.fromkeys(run.view for run in runs))
    return [_affinity(run, view, runs) for run in runs for view in views]


def _affinity(run: InspectedRun, view: str, runs: Sequence[InspectedRun]) -> Affinity:
    base_view = _crop_of(view)
    accuracy, clean, base = (
        _accuracy(run.validation(resolve_view(run.loaded.dataset, name))) for name in (view, "none", base_view)
    )
    return Affinity(
        run=run.name,
        trained_on=run.view,
        view=view,
        own=view == run.view,
        base_view=base_view,
        accuracy=accuracy,
        accuracy_clean=clean,
        accuracy_base=base,
        affinity=analysis.augmentation_affinity(accuracy, clean) if clean else None,
        reference_code_affinity=analysis.reference_code_affinity(accuracy, base) if base else None,
        clean_model=run.view == "none",
        overfit_gap=overfit_gap(run),
        diversity=_diversity(run, view, runs),
    )


def _accuracy(outputs: Predictions) -> float:
    return float(np.mean(outputs.logits.argmax(axis=1) == outputs.labels))


def _crop_of(view: str) -> str:
    """Returns the name of the view that has a view's crop and nothing else."""
    parsed = parse(view)
    return {"": "none", "padded": "crop", "resized": f"rrc:{parsed.smallest:g}"}[parsed.crop]


def _diversity(run: InspectedRun, view: str, runs: Sequence[InspectedRun]) -> float | None:
    """Returns the run's training loss under its own view over the mean loss of the runs on clean images."""
    if view != run.view or parse(view).mix:  # `outputs` leaves the mix out, so its loss cannot be measured
        return None
    recipe = _recipe(run)
    clean = [_train_loss(other) for other in runs if other.view == "none" and _recipe(other) == recipe]
    if not clean or np.mean(clean) == 0:
        return None
    return analysis.augmentation_diversity(_train_loss(run), float(np.mean(clean)))


def _recipe(run: InspectedRun) -> dict[str, object]:
    """Returns a run's config without its view, its seed and the fields that change no number."""
    config = run.loaded.config.to_dict()
    data = {field: value for field, value in config["data"].items() if field != "view"}
    left_out = ("name", "seed", *OPERATIONAL)
    return {**{field: value for field, value in config.items() if field not in left_out}, "data": data}


def _train_loss(run: InspectedRun) -> float:
    """Returns the final network's cross-entropy on its training images, each seen once under the run's own view."""
    outputs = run.outputs("train", run.view)
    return analysis.means(analysis.score_sums(outputs.logits, outputs.labels))["nll"]


def overfit_gap(run: InspectedRun) -> float | None:
    """Returns the training accuracy at the end less the best validation accuracy, in [-1, 1].

    The training accuracy is that of the checkpoint that is inspected, on clean images.

    Args:
      run: A run with a validation split.

    Returns:
      The gap, or None for a run that is not finished.
    """
    result = run.stored.result
    if result is None:
        return None
    best = result.get("best", result["last"])["validation"]["accuracy"]
    return analysis.overfit_gap(_accuracy(run.outputs("train")), best)

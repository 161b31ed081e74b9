"""What runs of a store have learned, and how they differ: the statistics of `kdjax.analysis` over their outputs."""

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from kdjax import analysis
from kdjax.config import with_defaults
from kdjax.data import resolve_view
from kdjax.data.views.names import parse
from kdjax.errors import UserError, nearest
from kdjax.inspection.maps import MAPS, REFERENCE_CODE_BATCH, Head, find_head, head_regions
from kdjax.inspection.predict import Predictions, load_run, predict
from kdjax.store import Store

RATERS = {"cifar10h": 51}  # data set -> about how many people each of its distributions is the frequency among


class Seen:
    """A run that is looked at.

    Args:
      store: that has it.
      name: of the run.
      split: that is looked at.
      checkpoint: 'last', 'best' or a step.
      data_dir: where data sets that are not embedded lie.

    Raises:
      UserError: no such run, checkpoint, data or split.
    """

    def __init__(self, store: Store, name: str, split: str, checkpoint: str, data_dir: str):
        self.name, self.split, self.stored = name, split, store.find(name)
        data = with_defaults(self.stored.manifest["config"])["data"]
        # What a student was told is not what is true: the data's own distributions count here.
        told = {name: value for name, value in data["protocols"].items() if name != "mixed_targets"}
        self.run = load_run(store, name, checkpoint, data_dir, data=ConfigDict({**data, "protocols": told}))
        if split not in self.run.dataset.splits:
            raise UserError(f"run '{name}' has no split '{split}'.{nearest(split, self.run.dataset.splits)}")
        self._outputs: dict[tuple[str, str], Predictions] = {}

    @property
    def view(self) -> str:
        """That the run was trained on."""
        return resolve_view(self.run.dataset, self.run.config.data.view)

    @functools.cached_property
    def head(self) -> Head:
        """Where its class-activation maps come from; UserError where there are none."""
        return find_head(self.name, self.run, self.split)

    @property
    def rows(self) -> np.ndarray:
        """The split's examples that have labels."""
        rows = self.run.dataset.splits[self.split]
        return rows[self.run.dataset.labelled[rows]]

    def outputs(self, split: str = "", view: str = "none") -> Predictions:
        """Returns the run's outputs on a split ('': the one looked at), computed once."""
        key = (split or self.split, view)
        if key not in self._outputs:
            run = self.run
            options = {"view": view, "seed": run.config.seed}
            self._outputs[key] = predict(run.network, run.dataset, key[0], run.batch_size, run.devices, **options)
        return self._outputs[key]

    def validation(self, view: str = "none") -> Predictions:
        """Returns the outputs on the validation split, which must be there."""
        if "validation" not in self.run.dataset.splits:
            raise UserError(f"run '{self.name}' has no validation split; train with config.data.validation above 0.")
        return self.outputs("validation", view)


def analyze(
    store: Store,
    names: Sequence[str],
    what: Sequence[str],
    *,
    split: str = "test",
    checkpoint: str = "last",
    data_dir: str = "data",
) -> dict:
    """Analyses runs.

    Args:
      store: that has them.
      names: of the runs.
      what: names of WHAT.
      split: 'train', 'validation' or 'test'.
      checkpoint: 'last', 'best' or a step.
      data_dir: where data sets that are not embedded lie.

    Returns:
      {'runs', 'split', 'checkpoint', 'notes', and what each of `what` found}, of JSON's types; nan and inf may occur.
      'notes' are what a reader of the numbers must know, a line each.

    Raises:
      UserError: an unknown name, or a run that an analysis does not fit.
    """
    for name in what:
        if name not in WHAT:
            raise UserError(f"unknown analysis '{name}'.{nearest(name, WHAT)}")
    if not names or not what:
        raise UserError("name at least one run and one analysis.")
    for name in names:
        store.find(name)
    runs = [Seen(store, name, split, checkpoint, data_dir) for name in names]
    found = {name: WHAT[name](runs) for name in what}
    notes = list(dict.fromkeys(note for run in runs for note in _notes(run, what)))
    return {"runs": list(names), "split": split, "checkpoint": checkpoint, "notes": notes, **_listed(found)}


def _notes(run: Seen, what: Sequence[str]) -> list[str]:
    notes = []
    if run.stored.manifest.get("loss_space") == "logits":
        notes.append(f"Run '{run.name}' was fitted in logit space: the softmax measured here says little of it.")
    if "affinity" in what and parse(run.view).mix:
        notes.append(f"View '{run.view}' is shown without its mix, which no single label fits.")
    return notes


def posterior(runs: Sequence[Seen]) -> list[dict]:
    """How far each run's outputs are from the data's distributions: means of `posterior_sums`, and their parts.

    Where the distributions are frequencies among people whose number is known, 'squared_distance_corrected' has their
    noise taken off.
    """
    found = []
    for run in runs:
        outputs, data = run.outputs(), run.run.dataset.name
        if outputs.soft is None:
            raise UserError(
                f"posterior: run '{run.name}' has data set '{data}', which has no distributions; gaussian and cifar10h "
                "have, and config.data.protocols.soft_labels brings them from a file."
            )
        if "soft_labels" in run.run.config.data.protocols and _is_one_hot(outputs):
            raise UserError(
                f"posterior: split '{run.split}' of run '{run.name}' has labels alone; its protocol soft_labels "
                "brought distributions to another split: name that by --split."
            )
        measure = functools.partial(analysis.posterior_sums, raters=_raters(run))
        sums = analysis.in_parts(measure, outputs.logits, outputs.soft)
        scores = analysis.means(sums)
        parts = {
            "decomposition": analysis.decomposition(scores),
            "reference_code_distance": analysis.reference_code_distance(sums),
        }
        found.append({"run": run.name, "examples": len(outputs.rows), **scores, **parts})
    return found


def _is_one_hot(outputs: Predictions) -> bool:
    """Whether the distributions say no more than the labels."""
    return np.array_equal(outputs.soft, np.eye(outputs.soft.shape[1])[outputs.labels])


def _raters(run: Seen) -> int | None:
    """Of how many people each distribution is the frequency; None for a known p*, and for a user's own file."""
    data = run.run.config.data
    if data.args.get("labels") or "soft_labels" in data.protocols:
        return None
    return RATERS.get(run.run.dataset.name)


def fidelity(runs: Sequence[Seen]) -> dict:
    """How alike the answers of every two runs are, and of each run and the mean of the others where there are three.

    'kl_first_second' is KL(first || second). Means over all examples, and by true class. What the multi-teacher
    paper's own code prints is 'reference_code_kl', 10 KL(second || first), and 'reference_code_mutual_information',
    the plug-in's within 128 examples.
    """
    outputs = _comparable("fidelity", runs)
    pairs = itertools.combinations(range(len(runs)), 2)
    found = [{"first": runs[i].name, "second": runs[j].name, **_alike(outputs[i].logits, outputs[j])} for i, j in pairs]
    against = []
    for i, run in enumerate(runs if len(runs) > 2 else ()):
        mean = analysis.ensemble([other.logits for j, other in enumerate(outputs) if j != i])
        against.append({"first": "mean of the others", "second": run.name, **_alike(mean, outputs[i])})
    return {"pairs": found, "against_mean": against}


def _alike(first: Any, second: Predictions) -> dict:
    table = analysis.in_parts(analysis.label_pairs, first, second.logits)
    scores = analysis.fidelity_scores(first, second.logits, labels=second.labels)
    scores["mutual_information_miller_madow"] = analysis.mutual_information(table, "miller_madow")
    return {
        **scores,
        **_reference_code(first, second.logits),
        "information_by_class": analysis.information_by_class(table),
    }


def _reference_code(first: Any, second: Any) -> dict:
    """What the released code prints of two runs' logits, batch by batch in the split's order."""
    parts = [slice(start, start + REFERENCE_CODE_BATCH) for start in range(0, len(second), REFERENCE_CODE_BATCH)]
    measures = (analysis.reference_code_kl_sums, analysis.reference_code_mutual_information_sums)
    totals = [{name: sums for m in measures for name, sums in m(first[p], second[p]).items()} for p in parts]
    return analysis.means(analysis.add(*totals))


def attention(runs: Sequence[Seen]) -> dict:
    """How far the regions that two and three runs look at overlap, by class-activation maps and by Grad-CAM.

    'map' is a name of `maps.MAPS`. 'iou' is the mean over images, 'pooled_iou' that of all pixels of the set,
    'reference_code_iou' the mean of the pooled ones of 128 images; 'empty' is the share of images without any region.
    """
    _comparable("attention", runs)
    heads = [run.head for run in runs]
    groups = [group for size in (2, 3) for group in itertools.combinations(range(len(runs)), size)]
    shape, rows = runs[0].run.dataset.input_shape, runs[0].rows
    totals: dict[tuple, list] = {(name, group): [] for name in MAPS for group in groups}
    for start in range(0, len(rows), REFERENCE_CODE_BATCH):
        part = rows[start : start + REFERENCE_CODE_BATCH]
        looked = [head_regions(run.run, head, part, shape[:2]) for run, head in zip(runs, heads, strict=True)]
        for name, group in totals:
            masks = [looked[i][name] for i in group]
            totals[name, group].append({**analysis.iou_sums(masks), **analysis.reference_code_iou_sums(masks)})
    overlaps = [
        {"map": name, "runs": [runs[i].name for i in group], **analysis.means(analysis.add(*parts))}
        for (name, group), parts in totals.items()
    ]
    maps = [{"run": run.name, "map": head.feature, "activation": head.activation} for run, head in zip(runs, heads)]
    return {"maps": maps, "overlaps": overlaps}


def calibration(runs: Sequence[Seen]) -> list[dict]:
    """Whether each run's probabilities are frequencies, before and after a temperature fitted on validation."""
    found = []
    for run in runs:
        outputs = run.outputs()
        row = {"run": run.name, "examples": len(outputs.rows), **_calibrated(outputs.logits, outputs.labels)}
        if "validation" in run.run.dataset.splits and run.split != "validation":
            fitted = run.validation()
            row["temperature"] = analysis.fit_temperature(fitted.logits, fitted.labels)
            row["tempered"] = _calibrated(outputs.logits / row["temperature"], outputs.labels)
        found.append(row)
    return found


def _calibrated(logits: np.ndarray, labels: np.ndarray) -> dict:
    table, by_class = (
        analysis.in_parts(measure, logits, labels) for measure in (analysis.reliability_sums, analysis.classwise_sums)
    )
    return {
        **analysis.calibration_scores(logits, labels),
        "brier_decomposition": analysis.brier_decomposition(by_class),
        "reliability": analysis.reliability(table)._asdict(),
    }


def affinity(runs: Sequence[Seen]) -> list[dict]:
    """Accuracy of each run on validation under its own view and clean, its ratios, and the over-fitting gap.

    Every run is shown the views of all runs. 'affinity' is that of Gontijo-Lopes et al. in the rows of a run that was
    trained on clean images; 'reference_code_affinity' divides by the accuracy under the view's crop alone. 'diversity'
    is in the rows of a run under its own view, where a run of the same recipe on clean images is among the runs, else
    None.
    """
    views = list(dict.fromkeys(run.view for run in runs))
    return [{**_shown(run, view), "diversity": _diversity(run, view, runs)} for run in runs for view in views]


def _diversity(run: Seen, view: str, runs: Sequence[Seen]) -> float | None:
    """Diversity of a run's own view, its loss over the mean of the clean runs'; None where it cannot be known."""
    recipe = _recipe(run)
    clean = [_train_loss(other) for other in runs if other.view == "none" and _recipe(other) == recipe]
    if view != run.view or parse(view).mix or not clean or np.mean(clean) == 0:  # a mix is not shown by `outputs`
        return None
    return analysis.augmentation_diversity(_train_loss(run), float(np.mean(clean)))


def _recipe(run: Seen) -> dict:
    """A run's config but for its view, what it is called and the seed."""
    config = run.run.config.to_dict()
    data = {field: value for field, value in config["data"].items() if field != "view"}
    apart = ("name", "seed", "notes", "published", "checkpoint")
    return {**{field: value for field, value in config.items() if field not in apart}, "data": data}


def _train_loss(run: Seen) -> float:
    """Cross-entropy with labels of the trained network on its training images, each under the run's view once."""
    outputs = run.outputs("train", run.view)
    return analysis.means(analysis.score_sums(outputs.logits, outputs.labels))["nll"]


def _shown(run: Seen, view: str) -> dict:
    base = _crop_of(view)
    augmented, clean, cropped = (
        _accuracy(run.validation(resolve_view(run.run.dataset, v))) for v in (view, "none", base)
    )
    row = {"run": run.name, "trained_on": run.view, "view": view, "own": view == run.view, "base_view": base}
    row |= {"accuracy": augmented, "accuracy_clean": clean, "accuracy_base": cropped}
    row["affinity"] = analysis.augmentation_affinity(augmented, clean) if clean else None
    row["reference_code_affinity"] = analysis.reference_code_affinity(augmented, cropped) if cropped else None
    return {**row, "clean_model": run.view == "none", "overfit_gap": result_gap(run.stored.result)}


def _crop_of(view: str) -> str:
    """The name of a view's crop alone."""
    parsed = parse(view)
    return {"": "none", "padded": "crop", "resized": f"rrc:{parsed.smallest:g}"}[parsed.crop]


def result_gap(result: Mapping | None) -> float | None:
    """Returns training accuracy at the end less the best on validation, in [-1, 1].

    Args:
      result: of a run with a validation split; None, as is returned then, of one that is not finished.
    """
    if result is None:
        return None
    best = result.get("best", result["last"])["validation"]["accuracy"]
    return analysis.overfit_gap(result["last"]["train"]["accuracy"], best)


def _accuracy(outputs: Predictions) -> float:
    return float(np.mean(outputs.logits.argmax(axis=1) == outputs.labels))


def _comparable(what: str, runs: Sequence[Seen]) -> list[Predictions]:
    """Returns the runs' outputs, which must be of the same examples."""
    if len(runs) < 2:
        raise UserError(f"{what} compares runs: name two or more, --runs=a,b.")
    outputs, first = [run.outputs() for run in runs], runs[0]
    for run, own in zip(runs[1:], outputs[1:], strict=True):
        same = first.run.dataset.name == run.run.dataset.name and own.logits.shape == outputs[0].logits.shape
        if not same or not all(
            np.array_equal(a, b) for a, b in ((own.rows, first.rows), (own.labels, outputs[0].labels))
        ):
            raise UserError(
                f"{what}: runs '{first.name}' and '{run.name}' have other examples or classes in their split "
                f"'{first.split}'; compare runs of the same data, protocols and config.data.split_seed."
            )
    return outputs


def _listed(value: Any) -> Any:
    """Arrays as lists, inside mappings and lists."""
    if isinstance(value, Mapping):
        return {key: _listed(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_listed(item) for item in value]
    return value.tolist() if isinstance(value, np.ndarray) else value


# Name -> (runs) -> what it finds, which --what may name.
WHAT = {
    "posterior": posterior,
    "fidelity": fidelity,
    "attention": attention,
    "calibration": calibration,
    "affinity": affinity,
}

"""Analyses of stored runs: what their outputs have learned and how they differ, by the measures of `kdjax.analysis`."""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from kdjax import analysis
from kdjax.data.views.names import parse
from kdjax.errors import UserError, nearest
from kdjax.inspection.affinity import affinity
from kdjax.inspection.attention import attention
from kdjax.inspection.inspected_run import InspectedRun, comparable_outputs
from kdjax.inspection.maps import REFERENCE_CODE_BATCH
from kdjax.inspection.predict import Predictions
from kdjax.store import Store
from kdjax.training.shared_store import shared
from kdjax.types import Array

RATERS = {"cifar10h": 51}  # data set -> how many people labelled each image, about
Row = dict[str, object]  # column -> a string, a number, an array, or a mapping of these


def analyze(
    store: Store,
    names: Sequence[str],
    what: Sequence[str],
    *,
    split: str = "test",
    checkpoint: str = "last",
    data_dir: str = "data",
) -> dict:
    """Analyses runs of a store.

    Args:
      store: Store that holds the runs.
      names: Names of the runs.
      what: Names of analyses, keys of ANALYSES.
      split: 'train', 'validation' or 'test'.
      checkpoint: 'last', 'best' or a step.
      data_dir: Directory of the data sets that do not come with kdjax.

    Returns:
      {'runs', 'split', 'checkpoint', 'notes', and the result of each analysis under its name}, of JSON's types; nan
      and inf may occur. 'notes' are caveats for the reader of the numbers, one sentence each.

    Raises:
      UserError: A name is unknown, or an analysis does not fit a run.
    """
    store = shared(store)
    for name in what:
        if name not in ANALYSES:
            raise UserError(f"unknown analysis '{name}'.{nearest(name, ANALYSES)}")
    if not names or not what:
        raise UserError("name at least one run and one analysis.")
    for name in names:
        store.find(name)
    runs = [InspectedRun(store, name, split, checkpoint, data_dir) for name in names]
    results = {name: _json(ANALYSES[name](runs)) for name in what}
    notes = list(dict.fromkeys(note for run in runs for note in _notes(run, what)))
    return {"runs": list(names), "split": split, "checkpoint": checkpoint, "notes": notes, **results}


def _notes(run: InspectedRun, what: Sequence[str]) -> list[str]:
    notes = []
    if run.stored.manifest.get("loss_space") == "logits":
        notes.append(
            f"Run '{run.name}' was fitted in logit space: measures of its softmax say little about what it learned."
        )
    if "affinity" in what and parse(run.view).mix:
        notes.append(f"View '{run.view}' is measured without its mix, because a mixed image has no single label.")
    return notes


def _json(value: object) -> object:
    """Returns a value with records as mappings and arrays as lists, also inside mappings and lists."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {key: _json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json(item) for item in value]
    return value.tolist() if isinstance(value, np.ndarray) else value


def posterior(runs: Sequence[InspectedRun]) -> list[Row]:
    """Measures how far each run's outputs are from the data set's distributions.

    Args:
      runs: Runs whose data set has distributions.

    Returns:
      For each run the means of `analysis.posterior_sums` and their decomposition. If the distributions are frequencies
      among a known number of people, 'squared_distance_corrected' is the squared distance without these people's
      sampling noise.

    Raises:
      UserError: A run's data set has no distributions, or none on this split.
    """
    return [_posterior(run) for run in runs]


def _posterior(run: InspectedRun) -> Row:
    outputs = run.outputs()
    _check_distributions(run, outputs)
    measure = functools.partial(analysis.posterior_sums, raters=_raters(run))
    sums = analysis.in_parts(measure, outputs.logits, outputs.soft)
    scores = analysis.means(sums)
    return {
        "run": run.name,
        "examples": len(outputs.rows),
        **scores,
        "decomposition": analysis.decomposition(scores),
        "reference_code_distance": analysis.reference_code_distance(sums),
    }


def _check_distributions(run: InspectedRun, outputs: Predictions) -> None:
    if outputs.soft is None:
        raise UserError(
            f"posterior: run '{run.name}' has data set '{run.loaded.dataset.name}', which has no distributions; use "
            "gaussian or cifar10h, or read distributions from a file with config.data.protocols.soft_labels."
        )
    one_hot = np.eye(outputs.soft.shape[1])[outputs.labels]
    if "soft_labels" in run.loaded.config.data.protocols and np.array_equal(outputs.soft, one_hot):
        raise UserError(
            f"posterior: split '{run.split}' of run '{run.name}' has labels alone; its protocol soft_labels gives "
            "distributions to another split: name that split with --split."
        )


def _raters(run: InspectedRun) -> int | None:
    """Returns how many people each distribution is a frequency among.

    It is None for a known p*, and for distributions from a user's own file.
    """
    data = run.loaded.config.data
    if data.args.get("labels") or "soft_labels" in data.protocols:
        return None
    return RATERS.get(run.loaded.dataset.name)


def fidelity(runs: Sequence[InspectedRun]) -> dict[str, list[Row]]:
    """Measures how alike the outputs of runs are.

    Args:
      runs: Two or more runs with the same examples in their split.

    Returns:
      'pairs', a row for every two runs, and 'against_mean', a row for each run against the mean logits of the others if
      there are three runs or more. Values are means over all examples, and by true class in 'NAME_by_class';
      'kl_first_second' is KL(first || second). 'reference_code_kl' and 'reference_code_mutual_information' are what the
      code of Guo et al. prints: 10 KL(second || first), and the plug-in estimate within 128 examples at a time.

    Raises:
      UserError: The runs cannot be compared.
    """
    outputs = comparable_outputs("fidelity", runs)
    indices = range(len(runs))
    pairs = [
        {"first": runs[i].name, "second": runs[j].name, **_fidelity(outputs[i].logits, outputs[j])}
        for i, j in itertools.combinations(indices, 2)
    ]
    against_mean = []
    for i in indices if len(runs) > 2 else ():
        mean = analysis.ensemble([outputs[j].logits for j in indices if j != i])
        against_mean.append({"first": "mean of the others", "second": runs[i].name, **_fidelity(mean, outputs[i])})
    return {"pairs": pairs, "against_mean": against_mean}


def _fidelity(first: Array, second: Predictions) -> Row:
    table = analysis.in_parts(analysis.label_pairs, first, second.logits)
    scores = analysis.fidelity_scores(first, second.logits, labels=second.labels)
    return {
        **scores,
        "mutual_information_miller_madow": analysis.mutual_information(table, "miller_madow"),
        **_reference_code_fidelity(first, second.logits),
        "information_by_class": analysis.information_by_class(table),
    }


def _reference_code_fidelity(first: Array, second: Array) -> dict[str, float]:
    """Returns what the code of Guo et al. prints: means over batches, in the order of the split."""
    totals = []
    for start in range(0, len(second), REFERENCE_CODE_BATCH):
        part = slice(start, start + REFERENCE_CODE_BATCH)
        kl = analysis.reference_code_kl_sums(first[part], second[part])
        totals.append({**kl, **analysis.reference_code_mutual_information_sums(first[part], second[part])})
    return analysis.means(analysis.add(*totals))


def calibration(runs: Sequence[InspectedRun]) -> list[Row]:
    """Measures whether each run's probabilities are frequencies.

    Args:
      runs: Runs to measure.

    Returns:
      A row for each run. If there is a validation split, 'temperature' was fitted on it, and 'tempered' are the same
      measures of the inspected split after the logits are divided by it.
    """
    return [_calibration(run) for run in runs]


def _calibration(run: InspectedRun) -> Row:
    outputs = run.outputs()
    row = {"run": run.name, "examples": len(outputs.rows), **_calibration_scores(outputs.logits, outputs.labels)}
    if "validation" in run.loaded.dataset.splits and run.split != "validation":
        validation = run.validation()
        temperature = analysis.fit_temperature(validation.logits, validation.labels)
        row["temperature"] = temperature
        row["tempered"] = _calibration_scores(outputs.logits / temperature, outputs.labels)
    return row


def _calibration_scores(logits: np.ndarray, labels: np.ndarray) -> Row:
    reliability = analysis.in_parts(analysis.reliability_sums, logits, labels)
    classwise = analysis.in_parts(analysis.classwise_sums, logits, labels)
    return {
        **analysis.calibration_scores(logits, labels),
        "brier_decomposition": analysis.brier_decomposition(classwise),
        "reliability": analysis.reliability(reliability),
    }


# Name of an analysis, for --what -> function of the runs that returns records or rows.
ANALYSES: dict[str, Callable[[Sequence[InspectedRun]], object]] = {
    "posterior": posterior,
    "fidelity": fidelity,
    "attention": attention,
    "calibration": calibration,
    "affinity": affinity,
}

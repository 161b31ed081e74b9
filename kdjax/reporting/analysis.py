"""What an analysis found, as tables in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from kdjax.reporting.tables import markdown


def report(found: Mapping[str, Any]) -> str:
    """Returns a table for each analysis.

    Args:
      found: what `studies.analysis.analyze` returned.
    """
    parts = [f"## {name}\n\n{function(found[name])}" for name, function in TABLES.items() if name in found]
    head = (
        f"{len(found['runs'])} runs, split '{found['split']}', checkpoint '{found['checkpoint']}'; entropies in nats."
    )
    return "\n\n".join([head, *found["notes"], *parts])


def posterior_table(rows: Sequence[Mapping]) -> str:
    """Distances to p*."""
    columns = {
        "squared distance": "squared_distance",
        "less raters' noise": "squared_distance_corrected",
        "KL(p*, q)": "kl_posterior_network",
        "KL(q, p*)": "kl_network_posterior",
        "cross-entropy": "cross_entropy",
        "H(p*)": "posterior_entropy",
        "squared error": "squared_error",
        "label noise": "label_noise",
    }
    return _columns(rows, {"run": "run"}, columns)


def fidelity_table(found: Mapping) -> str:
    """Pairs of runs, then each run against the mean of the others."""
    columns = {
        "agreement": "agreement",
        "KL(first, second)": "kl_first_second",
        "KL(second, first)": "kl_second_first",
        "total variation": "total_variation",
        "mutual information": "mutual_information",
        "Miller-Madow": "mutual_information_miller_madow",
        "reference code: 10 KL(second, first)": "reference_code_kl",
        "reference code: information": "reference_code_mutual_information",
        "entropy, first": "entropy_first",
        "entropy, second": "entropy_second",
    }
    return _columns([*found["pairs"], *found["against_mean"]], {"first": "first", "second": "second"}, columns)


def attention_table(found: Mapping) -> str:
    """Overlaps of two and of three runs, by every kind of map."""
    rows = [{**row, "names": ", ".join(row["runs"])} for row in found["overlaps"]]
    columns = {
        "IoU": "iou",
        "pooled IoU": "pooled_iou",
        "reference code: IoU": "reference_code_iou",
        "without a region": "empty",
    }
    return _columns(rows, {"map": "map", "runs": "names"}, columns)


def calibration_table(rows: Sequence[Mapping]) -> str:
    """Each run as it is, and with its temperature."""
    lines = []
    for row in rows:
        lines.append({**row, "temperature": 1.0, **_brier(row)})
        if "tempered" in row:
            tempered = row["tempered"]
            lines.append({**tempered, "run": row["run"], "temperature": row["temperature"], **_brier(tempered)})
    columns = {
        "T": "temperature",
        "accuracy": "accuracy",
        "NLL": "nll",
        "Brier": "brier",
        "reliability": "brier_reliability",
        "resolution": "brier_resolution",
        "ECE": "ece",
        "reference code: ECE, bins alike": "reference_code_ece",
        "adaptive": "ece_adaptive",
        "classwise": "ece_classwise",
    }
    return _columns(lines, {"run": "run"}, columns)


def affinity_table(rows: Sequence[Mapping]) -> str:
    """Each run under each view."""
    columns = {
        "accuracy": "accuracy",
        "clean": "accuracy_clean",
        "crop alone": "accuracy_base",
        "affinity": "affinity",
        "reference code: affinity": "reference_code_affinity",
        "diversity": "diversity",
        "over-fitting gap": "overfit_gap",
    }
    table = _columns(rows, {"run": "run", "trained on": "trained_on", "view": "view"}, columns)
    return f"{table}\n\nAccuracies are those of the validation split, whatever split the other tables are of."


def _brier(row: Mapping) -> dict:
    return {f"brier_{name}": value for name, value in row["brier_decomposition"].items()}


def _columns(rows: Sequence[Mapping], words: Mapping[str, str], numbers: Mapping[str, str]) -> str:
    """A table of the columns that some row has."""
    numbers = {title: key for title, key in numbers.items() if any(row.get(key) is not None for row in rows)}
    lines = [
        [*(row[key] for key in words.values()), *(_number(row.get(key)) for key in numbers.values())] for row in rows
    ]
    return markdown((*words, *numbers), lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


# Analysis -> its table.
TABLES = {
    "posterior": posterior_table,
    "fidelity": fidelity_table,
    "attention": attention_table,
    "calibration": calibration_table,
    "affinity": affinity_table,
}

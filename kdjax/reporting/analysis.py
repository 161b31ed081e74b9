"""The results of `kdjax.analyze` as tables in Markdown."""

from collections.abc import Callable, Mapping, Sequence

from kdjax.reporting.tables import markdown

Row = Mapping[str, object]  # column -> value


def report(results: Mapping) -> str:
    """Returns a table for each analysis.

    Args:
      results: Results that `inspection.analyze.analyze` returned, or the JSON file that the command wrote.
    """
    runs, split, checkpoint = (results[field] for field in ("runs", "split", "checkpoint"))
    head = f"{len(runs)} runs, split '{split}', checkpoint '{checkpoint}'; entropies and divergences in nats."
    tables = [f"## {name}\n\n{table(results[name])}" for name, table in TABLES.items() if name in results]
    return "\n\n".join([head, *results["notes"], *tables])


def posterior_table(rows: Sequence[Row]) -> str:
    """Returns the table of the runs' distances to p*."""
    columns = {
        "squared distance": "squared_distance",
        "squared distance without raters' noise": "squared_distance_corrected",
        "KL(p*, q)": "kl_posterior_network",
        "KL(q, p*)": "kl_network_posterior",
        "cross-entropy": "cross_entropy",
        "H(p*)": "posterior_entropy",
        "squared error": "squared_error",
        "label noise": "label_noise",
    }
    return _columns(rows, {"run": "run"}, columns)


def fidelity_table(found: Mapping) -> str:
    """Returns the table of the pairs of runs, then of each run against the mean of the others."""
    columns = {
        "agreement": "agreement",
        "KL(first, second)": "kl_first_second",
        "KL(second, first)": "kl_second_first",
        "total variation": "total_variation",
        "mutual information": "mutual_information",
        "mutual information, Miller-Madow": "mutual_information_miller_madow",
        "reference code: 10 KL(second, first)": "reference_code_kl",
        "reference code: mutual information": "reference_code_mutual_information",
        "entropy, first": "entropy_first",
        "entropy, second": "entropy_second",
    }
    return _columns([*found["pairs"], *found["against_mean"]], {"first": "first", "second": "second"}, columns)


def attention_table(found: Mapping) -> str:
    """Returns the table of the overlaps of two and of three runs, for each kind of map."""
    rows = [{**row, "names": ", ".join(row["runs"])} for row in found["overlaps"]]
    columns = {
        "IoU": "iou",
        "pooled IoU": "pooled_iou",
        "reference code: IoU": "reference_code_iou",
        "images without a region": "empty",
    }
    return _columns(rows, {"map": "map", "runs": "names"}, columns)


def calibration_table(rows: Sequence[Mapping]) -> str:
    """Returns the table of each run as it is, and with the temperature that was fitted on validation."""
    lines: list[Row] = []
    for row in rows:
        lines.append({**row, "temperature": 1.0, **_brier(row)})
        if "tempered" in row:
            tempered = row["tempered"]
            lines.append({**tempered, "run": row["run"], "temperature": row["temperature"], **_brier(tempered)})
    columns = {
        "temperature": "temperature",
        "accuracy": "accuracy",
        "NLL": "nll",
        "Brier": "brier",
        "Brier reliability": "brier_reliability",
        "Brier resolution": "brier_resolution",
        "ECE": "ece",
        "reference code: ECE, unweighted bins": "reference_code_ece",
        "adaptive ECE": "ece_adaptive",
        "classwise ECE": "ece_classwise",
    }
    return _columns(lines, {"run": "run"}, columns)


def affinity_table(rows: Sequence[Row]) -> str:
    """Returns the table of each run under each view."""
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
    return f"{table}\n\nThese accuracies are measured on the validation split, for any --split."


def _brier(row: Mapping) -> dict[str, float]:
    return {f"brier_{name}": value for name, value in row["brier_decomposition"].items()}


def _columns(rows: Sequence[Row], words: Mapping[str, str], numbers: Mapping[str, str]) -> str:
    """Returns a table without the columns of numbers that no row has.

    Args:
      rows: Values of each row.
      words: Title -> key of the columns of words.
      numbers: Title -> key of the columns of numbers.
    """
    numbers = {title: key for title, key in numbers.items() if any(row.get(key) is not None for row in rows)}
    lines = [
        [*(row[key] for key in words.values()), *(_number(row.get(key)) for key in numbers.values())] for row in rows
    ]
    return markdown((*words, *numbers), lines)


def _number(value: object) -> str:
    return "-" if value is None else f"{value:.4f}"


# Name of an analysis -> function that returns its table.
TABLES: dict[str, Callable[..., str]] = {
    "posterior": posterior_table,
    "fidelity": fidelity_table,
    "attention": attention_table,
    "calibration": calibration_table,
    "affinity": affinity_table,
}

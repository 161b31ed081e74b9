"""Tables in Markdown: of any cells, of the scores of a run, of a network's layers."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kdjax.reporting.statistics import Interval, has_no_width, mean_std

if TYPE_CHECKING:
    from kdjax.models import Description

SPLITS = ("train", "validation", "test")


def bounds(interval: Interval, digits: int = 2) -> str:
    """Returns ' [low, high]'; where all values are equal, ' (cannot tell ...)'; and '' for a single value.

    Equal values are no evidence: there are too few test examples to show a difference between them.

    Args:
      interval: Interval of a mean difference.
      digits: Digits after the decimal point.
    """
    if interval.units < 2:
        return ""
    if has_no_width(interval):
        return f" (cannot tell: all {interval.units} differences are equal)"
    return f" [{interval.low:+.{digits}f}, {interval.high:+.{digits}f}]"


def markdown(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Returns a Markdown table with aligned columns.

    Args:
      header: Titles of the columns.
      rows: Cells of each row.

    Raises:
      ValueError: A row has more or fewer cells than the header.
    """
    if any(len(row) != len(header) for row in rows):
        raise ValueError(f"every row needs {len(header)} cells, one for each title of {tuple(header)}.")
    cells = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Formats the mean of some values with their standard deviation (n - 1), if there are several; '' for no values."""
    if not values:
        return ""
    mean, std = mean_std(values)
    return f"{mean:.{digits}f}" if std is None else f"{mean:.{digits}f} ± {std:.{digits}f}"


def result_table(result: Mapping) -> str:
    """Returns a table of a run's result: the scores of the last and the best checkpoint on every split."""
    rows = [_score_rows(name, result[name]) for name in ("last", "best") if name in result]
    return markdown(("checkpoint", "step", "split", "loss", "top-1", "top-5"), [row for group in rows for row in group])


def score_table(scores: Mapping) -> str:
    """Returns a table of the scores that `inspection.predict.score_run` returned."""
    rows = _score_rows(scores["run"], scores)
    return markdown(("run", "step", "split", "loss", "top-1", "top-5"), rows)


def _score_rows(name: str, scores: Mapping) -> list[tuple[str, int, str, str, str, str]]:
    rows = []
    for split in SPLITS:
        if split in scores:
            score = scores[split]
            top5 = f"{score['top5']:.2%}" if "top5" in score else "-"
            rows.append((name, scores["step"], split, f"{score['loss']:.4f}", f"{score['accuracy']:.2%}", top5))
            if "accuracy_unshared" in score:
                row = (name, scores["step"], f"{split}, unshared images", "-", f"{score['accuracy_unshared']:.2%}", "-")
                rows.append(row)
    return rows


def description_text(name: str, image_shape: Sequence[int], description: "Description", *, inner: bool = False) -> str:
    """Returns tables of a network's parameters by layer, its features and its cost.

    Args:
      name: Name of the network.
      image_shape: Shape of one image.
      description: Description that `models.describe` returned.
      inner: Whether to list the outputs of submodules as well.
    """
    layers: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
    for path, shape in description.parameters:
        layers.setdefault(path.rpartition("/")[0] or path, []).append((path.rpartition("/")[2], shape))
    rows = [
        (layer, ", ".join(f"{leaf} {_shape(shape)}" for leaf, shape in leaves), f"{_size(leaves):,}")
        for layer, leaves in layers.items()
    ]
    total = sum(math.prod(shape) for _, shape in description.parameters)
    features = [(name, _shape(shape)) for name, shape in description.features]
    features += [("pooled", _shape(description.pooled))] if description.pooled else []
    parts = [
        f"{name} on images {_shape(image_shape)}: {total:,} parameters, {description.statistics:,} running statistics, "
        f"{description.flops / 1e6:,.1f} MFLOP a forward pass of one image (a multiply-add counts as two)",
        markdown(("layer", "parameters", "count"), rows),
        markdown(("feature", "shape for one image"), features),
    ]
    if inner:
        offered = [(path, _shape(shape)) for path, shape in description.inner]
        parts.append(markdown(("config.model.features may also pick", "shape for one image"), offered))
    return "\n\n".join(parts)


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _size(leaves: Sequence[tuple[str, Sequence[int]]]) -> int:
    return sum(math.prod(shape) for _, shape in leaves)

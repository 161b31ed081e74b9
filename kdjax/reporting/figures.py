"""The figures of reports as SVG: curves, points, reliability diagrams and matrices, legible in greyscale."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from kdjax import analysis
from kdjax.reporting.canvas import COLOURS, LINES, MARKERS, MOST, drawing
from kdjax.reporting.statistics import Interval, has_no_width
from kdjax.store.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ACROSS = 4  # number of diagrams beside one another
LONG = 8  # number of points from which on the first eighth of a curve may lie outside the axes


class Figure(NamedTuple):
    """A figure, or the reason why it is missing.

    Attributes:
      name: Short name, for its file.
      title: Title of its section.
      svg: An SVG element, or '' if the figure is missing.
      caption: Caption, or the reason why the figure is missing.
    """

    name: str
    title: str
    svg: str
    caption: str


def write(figures: Sequence[Figure], folder: pathlib.Path, flag: str = "--store") -> str:
    """Writes figures as SVG files, and returns Markdown that shows them from the parent folder.

    Args:
      figures: Figures; those without an SVG are left out.
      folder: Folder of the files, which is made if it does not exist.
      flag: Command line flag that chose the folder, for messages.

    Raises:
      UserError: A file cannot be written.
    """
    drawn = [figure for figure in figures if figure.svg]
    for figure in drawn:
        write_atomic(folder / f"{figure.name}.svg", figure.svg, flag)
    image = "## {0.title}\n\n![{0.title}]({1}/{0.name}.svg)\n\n{0.caption}"
    return "\n\n".join(image.format(figure, folder.name) for figure in drawn)


class Series(NamedTuple):
    """A series of points.

    Attributes:
      label: Label in the legend.
      x: Positions.
      y: Value at each position: a number, or several numbers, of which mean and standard deviation are drawn.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float] | Sequence[Sequence[float]]


def curves(name: str, title: str, caption: str, panels: Mapping[tuple[str, str], Sequence[Series]]) -> Figure:
    """Draws lines with bands of one standard deviation, in one panel or several beside one another.

    Args:
      name: Short name of the figure.
      title: Title of its section.
      caption: Caption.
      panels: (label of the x axis, label of the y axis) -> series of the panel.
    """
    rows = len(next(iter(panels.values())))
    with drawing(name, (4.2 * len(panels), 3.0 + 0.09 * rows), ncols=len(panels)) as draw:
        for axis, ((x_label, y_label), series) in zip(draw.axes[0], panels.items(), strict=True):
            alpha = max(0.07, 0.3 / max(2, len(series)))  # many bands that overlap stay transparent
            for i, each in enumerate(series):
                _curve(axis, each, i, alpha)
            axis.set(xlabel=x_label, ylabel=y_label, ylim=_y_limits(series))
            axis.xaxis.get_major_locator().set_params(integer=all(float(x).is_integer() for s in series for x in s.x))
        handles, labels = draw.axes[0, 0].get_legend_handles_labels()
        draw.figure.legend(handles, labels, loc="outside lower center", ncols=min(2, len(labels)))
    return Figure(name, title, draw.svg, caption)


def _curve(axis: "Axes", series: Series, i: int, alpha: float) -> None:
    mean, std = (np.array([f(y) for y in series.y]) for f in (np.mean, _std))
    style = {"color": COLOURS[i % MOST], "linestyle": LINES[i % MOST], "marker": MARKERS[i % MOST], "markersize": 4}
    axis.plot(series.x, mean, label=series.label, markevery=max(1, len(mean) // 8), linewidth=1.3, **style)
    if np.any(std > 0):
        axis.fill_between(series.x, mean - std, mean + std, color=COLOURS[i % MOST], alpha=alpha, linewidth=0)


def _y_limits(series: Sequence[Series]) -> tuple[float, float] | None:
    """Returns limits of the y axis that leave out the steep first eighth of long curves; None without long curves."""
    if all(len(each.y) < LONG for each in series):
        return None
    settled = [y for each in series for y in each.y[len(each.y) // LONG :]]  # all points of a short curve
    low = float(np.min([np.mean(y) - _std(y) for y in settled]))
    high = float(np.max([np.mean(y) + _std(y) for y in settled]))
    margin = 0.08 * (high - low) or 0.5
    return low - margin, high + margin


def _std(values: float | Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if np.size(values) > 1 else 0.0


def scatter(
    name: str,
    title: str,
    caption: str,
    labels: tuple[str, str],
    series: Sequence[Series],
    levels: Mapping[str, float] | None = None,
) -> Figure:
    """Draws points, with one marker for each series.

    Args:
      name: Short name of the figure.
      title: Title of its section.
      caption: Caption.
      labels: Labels of the x and the y axis.
      series: Points; each y is a number.
      levels: Label -> y of a dashed horizontal line.
    """
    levels = levels or {}
    with drawing(name, (6.4, 3.6 + 0.1 * len(series))) as draw:
        axis = draw.axes[0, 0]
        for i, each in enumerate(series):
            fill = COLOURS[i % MOST] if i % 2 else "none"
            style = {"marker": MARKERS[i % MOST], "facecolors": fill, "edgecolors": COLOURS[i % MOST]}
            axis.scatter(each.x, each.y, s=30, label=each.label, **style)
        for i, (label, level) in enumerate(levels.items()):
            axis.axhline(level, label=label, color=COLOURS[0], linestyle=LINES[1 + i], linewidth=1.0)
        axis.set(xlabel=labels[0], ylabel=labels[1])
        draw.figure.legend(loc="outside lower center", ncols=min(2, len(series) + len(levels)))
    return Figure(name, title, draw.svg, caption)


def forest(name: str, title: str, caption: str, label: str, rows: Mapping[str, Interval]) -> Figure:
    """Draws one interval below another, with a line at zero.

    Args:
      name: Short name of the figure.
      title: Title of its section.
      caption: Caption.
      label: Label of the x axis.
      rows: Label -> interval, from top to bottom.
    """
    with drawing(name, (6.4, 0.9 + 0.32 * len(rows))) as draw:
        axis = draw.axes[0, 0]
        axis.axvline(0, color=COLOURS[0], linestyle=LINES[1], linewidth=1.0)
        for place, interval in enumerate(rows.values()):
            mean, low, high, _ = interval
            outside = (low > 0 or high < 0) and not has_no_width(interval)  # equal values are no evidence
            axis.plot([low, high], [place, place], color=COLOURS[2], linewidth=1.3)
            axis.plot(mean, place, MARKERS[0], color=COLOURS[2], fillstyle="full" if outside else "none", markersize=6)
        axis.set_yticks(range(len(rows)), list(rows))
        axis.set(xlabel=label, ylim=(len(rows) - 0.5, -0.5))
    return Figure(name, title, draw.svg, caption)


def reliability_diagrams(name: str, title: str, caption: str, tables: Mapping[str, analysis.Reliability]) -> Figure:
    """Draws accuracy against confidence in bins, and below it the share of examples in each bin.

    Args:
      name: Short name of the figure.
      title: Title of its section.
      caption: Caption.
      tables: Label -> table of `analysis.reliability`.
    """
    columns = min(len(tables), ACROSS)
    bands = -(-len(tables) // columns)
    options = {"nrows": 2 * bands, "ncols": columns, "sharex": True, "height_ratios": (3, 1) * bands}
    with drawing(name, (0.8 + 2.3 * columns, 3.2 * bands), **options) as draw:
        axes = draw.axes
        cells = [
            (axes[2 * band, column], axes[2 * band + 1, column]) for band in range(bands) for column in range(columns)
        ]
        for (above, below), (label, table) in zip(cells, tables.items()):
            _reliability(above, below, table)
            above.set_title(label, fontsize=7)
        for above, below in cells[len(tables) :]:
            above.remove()
            below.remove()
        for band in range(bands):
            axes[2 * band, 0].set_ylabel("accuracy")
            axes[2 * band + 1, 0].set_ylabel("share of\nexamples")
    return Figure(name, title, draw.svg, caption)


def _reliability(above: "Axes", below: "Axes", table: analysis.Reliability) -> None:
    centres, widths = (table.edges[1:] + table.edges[:-1]) / 2, np.diff(table.edges)
    bars = {"width": widths, "edgecolor": "#000000", "linewidth": 0.7}
    above.bar(centres, np.nan_to_num(table.accuracy), color="#cfd8e3", hatch="///", **bars)
    above.plot([0, 1], [0, 1], color="#d55e00", linestyle="--", linewidth=1.3)
    above.set(xlim=(0, 1), ylim=(0, 1))
    below.bar(centres, table.count / max(table.count.sum(), 1), color="#8c96a3", **bars)
    below.set(xlabel="confidence", xticks=[0, 0.5, 1], ylim=(0, 1))
    below.tick_params(labelbottom=True)


def matrix(name: str, title: str, caption: str, labels: Sequence[str], values: np.ndarray, unit: str) -> Figure:
    """Draws a square matrix of numbers, dark for large ones.

    Args:
      name: Short name of the figure.
      title: Title of its section.
      caption: Caption.
      labels: Labels of the rows; their first words label the columns.
      values: Values in [0, 1], NaN if unknown [rows, rows].
      unit: Name of the quantity.
    """
    side, low = 1.2 + 0.5 * len(labels), np.floor(10 * np.nanmin(values)) / 10
    low = min(low, 0.9)  # values that are nearly equal get nearly equal colours
    digits = 3 if low >= 0.9 else 2  # 0.997 is not shown as 1
    with drawing(name, (side + 3.4, side)) as draw:
        axis = draw.axes[0, 0]
        image = axis.imshow(values, cmap="Greys", vmin=low, vmax=1)
        for (i, j), value in np.ndenumerate(values):
            text, dark = f"{value:.{digits}f}" if np.isfinite(value) else "-", value > (1 + low) / 2
            axis.text(j, i, text, ha="center", va="center", color="white" if dark else "black", fontsize=8)
        axis.set_xticks(range(len(labels)), [label.split()[0] for label in labels])
        axis.set_yticks(range(len(labels)), labels)
        axis.set_xlabel("row of the table")
        draw.figure.colorbar(image, ax=axis, label=unit)
    return Figure(name, title, draw.svg, caption)

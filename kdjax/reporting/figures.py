"""The report's figures, as SVG that is legible in greyscale: markers, line styles and hatches, axes with units."""

import contextlib
import io
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kdjax import analysis
from kdjax.store.files import write_atomic

COLOURS = ("#000000", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9", "#777777")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 2)), (0, (3, 3)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\", "++++")
MOST = len(COLOURS)  # curves in one figure
ACROSS = 4  # diagrams beside one another
LONG = 8  # points of a curve from which on the axis leaves out an eighth
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "text.parse_math": False,  # a name with $ is a name
    "svg.fonttype": "none",  # text stays text: it can be searched and read aloud
    "svg.hashsalt": "kdjax",  # the same figure has the same bytes
}


class Figure(NamedTuple):
    """A figure, or why there is none.

    Attributes:
      name: short, for its file.
      title: of its section.
      svg: '' where there is none.
      caption: what is seen, or why nothing is.
    """

    name: str
    title: str
    svg: str
    caption: str


def write(found: Sequence[Figure], folder: pathlib.Path, flag: str = "--store") -> str:
    """Writes figures as SVG files and returns the Markdown that shows them, from the folder above.

    Args:
      found: those without an SVG are left out.
      folder: made where it is not there.
      flag: that chose it, for messages.

    Raises:
      UserError: it cannot be written.
    """
    drawn = [figure for figure in found if figure.svg]
    for figure in drawn:
        write_atomic(folder / f"{figure.name}.svg", figure.svg, flag)
    image = "## {0.title}\n\n![{0.title}]({1}/{0.name}.svg)\n\n{0.caption}"
    return "\n\n".join(image.format(figure, folder.name) for figure in drawn)


class Series(NamedTuple):
    """Points of a kind.

    Attributes:
      label: in the legend.
      x: values.
      y: values at each x: a number, or several of which mean and standard deviation are drawn.
    """

    label: str
    x: Sequence[float]
    y: Sequence


@contextlib.contextmanager
def _drawing(name: str, **options: Any) -> Iterator[tuple]:
    """Gives (axes, out), axes in an array; the SVG is in out[0] afterwards."""
    import matplotlib.style
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    out: list[str] = []
    with matplotlib.style.context(STYLE):
        canvas = Canvas(layout="constrained", figsize=options.pop("figsize", (6.4, 3.6)))
        FigureCanvasSVG(canvas)
        yield canvas.subplots(**{"squeeze": False, **options}), out
        file = io.StringIO()
        canvas.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
        out.append(inline_svg(file.getvalue(), name))


def inline_svg(text: str, name: str) -> str:
    """Returns an SVG file as an element that may stand in a page beside others: without head, its ids its own.

    Args:
      text: of matplotlib.
      name: that its ids begin with.
    """
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    return re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text).strip()


def curves(name: str, title: str, caption: str, panels: Mapping[tuple[str, str], Sequence[Series]]) -> Figure:
    """Draws lines in one panel or several beside one another.

    Args:
      name, title, caption: of the figure.
      panels: (x label, y label) -> its series; a band is the standard deviation.
    """
    rows = len(next(iter(panels.values())))
    with _drawing(name, ncols=len(panels), figsize=(4.2 * len(panels), 3.0 + 0.09 * rows)) as (axes, out):
        for axis, ((x_label, y_label), series) in zip(axes[0], panels.items(), strict=True):
            faint = max(0.07, 0.3 / max(2, len(series)))  # many bands one upon another are no mud
            for i, each in enumerate(series):
                _curve(axis, each, i, faint)
            axis.set(xlabel=x_label, ylabel=y_label, ylim=_reach(series))
            axis.xaxis.get_major_locator().set_params(integer=all(float(x).is_integer() for s in series for x in s.x))
        handles, labels = axes[0, 0].get_legend_handles_labels()
        axes[0, 0].figure.legend(handles, labels, loc="outside lower center", ncols=min(2, len(labels)))
    return Figure(name, title, out[0], caption)


def _curve(axis: Any, series: Series, i: int, alpha: float) -> None:
    mean, std = (np.array([f(y) for y in series.y]) for f in (np.mean, _std))
    style = {"color": COLOURS[i % MOST], "linestyle": LINES[i % MOST], "marker": MARKERS[i % MOST], "markersize": 4}
    axis.plot(series.x, mean, label=series.label, markevery=max(1, len(mean) // 8), linewidth=1.3, **style)
    if np.any(std > 0):
        axis.fill_between(series.x, mean - std, mean + std, color=COLOURS[i % MOST], alpha=alpha, linewidth=0)


def _reach(series: Sequence[Series]) -> tuple[float, float] | None:
    """Limits that leave out a steep beginning of long curves, beside which what follows would be a flat line."""
    if all(len(each.y) < LONG for each in series):
        return None
    settled = [y for each in series for y in each.y[len(each.y) // LONG :]]  # of a short one all
    low, high = np.min([np.mean(y) - _std(y) for y in settled]), np.max([np.mean(y) + _std(y) for y in settled])
    margin = 0.08 * (high - low) or 0.5
    return low - margin, high + margin


def _std(values: Any) -> float:
    return float(np.std(values, ddof=1)) if np.size(values) > 1 else 0.0


def scatter(
    name: str,
    title: str,
    caption: str,
    labels: tuple[str, str],
    series: Sequence[Series],
    levels: Mapping[str, float] | None = None,
) -> Figure:
    """Draws points, a marker a series.

    Args:
      name, title, caption: of the figure.
      labels: of the axes.
      series: points, y a number each.
      levels: label -> y of a dashed line across.
    """
    levels = levels or {}
    with _drawing(name, figsize=(6.4, 3.6 + 0.1 * len(series))) as (axes, out):
        for i, each in enumerate(series):
            filled = COLOURS[i % MOST] if i % 2 else "none"
            style = {"marker": MARKERS[i % MOST], "facecolors": filled, "edgecolors": COLOURS[i % MOST]}
            axes[0, 0].scatter(each.x, each.y, s=30, label=each.label, **style)
        for i, (label, level) in enumerate(levels.items()):
            axes[0, 0].axhline(level, label=label, color=COLOURS[0], linestyle=LINES[1 + i], linewidth=1.0)
        axes[0, 0].set(xlabel=labels[0], ylabel=labels[1])
        axes[0, 0].figure.legend(loc="outside lower center", ncols=min(2, len(series) + len(levels)))
    return Figure(name, title, out[0], caption)


def reliability_diagrams(name: str, title: str, caption: str, tables: Mapping[str, analysis.Reliability]) -> Figure:
    """Draws accuracy against confidence by bins, and under it how many examples each bin has.

    Args:
      name, title, caption: of the figure.
      tables: label -> what `analysis.reliability` returned.
    """
    columns = min(len(tables), ACROSS)
    bands = -(-len(tables) // columns)
    options = {"nrows": 2 * bands, "ncols": columns, "sharex": True, "height_ratios": (3, 1) * bands}
    with _drawing(name, figsize=(0.8 + 2.3 * columns, 3.2 * bands), **options) as (axes, out):
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
    return Figure(name, title, out[0], caption)


def _reliability(above: Any, below: Any, table: analysis.Reliability) -> None:
    centres, widths = (table.edges[1:] + table.edges[:-1]) / 2, np.diff(table.edges)
    bars = {"width": widths, "edgecolor": "#000000", "linewidth": 0.7}
    above.bar(centres, np.nan_to_num(table.accuracy), color="#cfd8e3", hatch="///", **bars)
    above.plot([0, 1], [0, 1], color="#d55e00", linestyle="--", linewidth=1.3)
    above.set(xlim=(0, 1), ylim=(0, 1))
    below.bar(centres, table.count / max(table.count.sum(), 1), color="#8c96a3", **bars)
    below.set(xlabel="confidence", xticks=[0, 0.5, 1], ylim=(0, 1))
    below.tick_params(labelbottom=True)


def matrix(name: str, title: str, caption: str, labels: Sequence[str], values: np.ndarray, unit: str) -> Figure:
    """Draws a square of numbers, dark for large ones.

    Args:
      name, title, caption: of the figure.
      labels: of rows; their first words are the columns'.
      values: [rows, rows], NaN for what is not known.
      unit: what the numbers are.
    """
    side, low = 1.2 + 0.5 * len(labels), np.floor(10 * np.nanmin(values)) / 10
    low = min(low, 0.9)  # what is nearly alike shall not look different
    digits = 3 if low >= 0.9 else 2  # 0.997 is not 1
    with _drawing(name, figsize=(side + 3.4, side)) as (axes, out):
        axis = axes[0, 0]
        image = axis.imshow(values, cmap="Greys", vmin=low, vmax=1)
        for (i, j), value in np.ndenumerate(values):
            text, dark = f"{value:.{digits}f}" if np.isfinite(value) else "-", value > (1 + low) / 2
            axis.text(j, i, text, ha="center", va="center", color="white" if dark else "black", fontsize=8)
        axis.set_xticks(range(len(labels)), [label.split()[0] for label in labels])
        axis.set_yticks(range(len(labels)), labels)
        axis.set_xlabel("row of the table")
        axis.figure.colorbar(image, ax=axis, label=unit)
    return Figure(name, title, out[0], caption)


class Example(NamedTuple):
    """One image and what networks say of it.

    Attributes:
      image: [height, width, channels] uint8, or None for a vector.
      label: of the data.
      distributions: who -> [classes].
      maps: who -> [height, width] in [0, 1].
    """

    image: np.ndarray | None
    label: str
    distributions: dict[str, np.ndarray]
    maps: dict[str, np.ndarray]


def example_sheet(
    name: str, title: str, caption: str, examples: Sequence[Example], classes: Sequence[str], most: int = 10
) -> Figure:
    """Draws a row an example: image, where each network looks, and the distributions as bars.

    Args:
      name, title, caption: of the figure.
      examples: alike in what they have.
      classes: names of the classes.
      most: classes in a row, the most likely ones.
    """
    first = examples[0]
    shown = ([""] if first.image is not None else []) + list(first.maps)
    ratios = [1] * len(shown) + [2.6]
    options = {"nrows": len(examples), "ncols": len(shown) + 1, "gridspec_kw": {"width_ratios": ratios}}
    with _drawing(name, figsize=(1.5 * len(shown) + 4.6, 1.75 * len(examples) + 0.4), **options) as (axes, out):
        for row, example in zip(axes, examples, strict=True):
            for axis, who in zip(row, shown):
                _picture(axis, example, who)
            _bars(row[-1], example, classes, most)
        for axis, who in zip(axes[0], shown):
            axis.set_title(f"where {who.split()[0]} looks" if who else "image", fontsize=8)  # names do not fit
        axes[-1, -1].set_xlabel("class")
        axes[0, -1].legend(fontsize=7, ncols=3, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0)
    return Figure(name, title, out[0], caption)


def _picture(axis: Any, example: Example, who: str) -> None:
    if who:
        # Dark where the network does not look: legible without colours.
        lit = example.image / 255 * (0.15 + 0.85 * example.maps[who][..., None])
        axis.imshow(lit.squeeze(), cmap="gray", vmin=0, vmax=1)
        axis.contour(example.maps[who], levels=[0.4], colors="white", linewidths=1.2)
    else:
        axis.imshow(example.image.squeeze(), cmap="gray", vmin=0, vmax=255)
        axis.set_ylabel(f"label {example.label}", fontsize=8)
    axis.set_xticks([])
    axis.set_yticks([])


def _bars(axis: Any, example: Example, classes: Sequence[str], most: int) -> None:
    table = np.stack(list(example.distributions.values()))
    kept = np.sort(np.argsort(-table.max(axis=0), kind="stable")[:most])
    width = 0.8 / len(table)
    for i, (who, values) in enumerate(example.distributions.items()):
        shades = {"facecolor": ("#ffffff", "#bbbbbb", "#666666")[i % 3], "hatch": HATCHES[i % len(HATCHES)]}
        places = np.arange(len(kept)) + (i - (len(table) - 1) / 2) * width
        axis.bar(places, values[kept], width, label=who, edgecolor="#000000", linewidth=0.7, **shades)
    axis.set_xticks(range(len(kept)), [classes[k] for k in kept], fontsize=7)
    axis.set(ylim=(0, 1), ylabel="probability" if example.image is not None else f"label {example.label}\nprobability")

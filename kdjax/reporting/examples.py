"""The figure of a few examples: image, class-activation maps and predicted distributions."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from kdjax.reporting.canvas import HATCHES, drawing
from kdjax.reporting.figures import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHADES = ("#ffffff", "#bbbbbb", "#666666")
WIDTH = 70  # number of letters that fit over the bars


class Example(NamedTuple):
    """One example, with the distributions and the class-activation maps of several networks.

    Attributes:
      image: Image, uint8 [height, width, channels]; None if the input is a vector.
      label: Name of the true class.
      distributions: Name of a network, or p* -> probabilities [classes].
      maps: Name of a network -> class-activation map in [0, 1] [height, width].
    """

    image: np.ndarray | None
    label: str
    distributions: dict[str, np.ndarray]
    maps: dict[str, np.ndarray]


def example_sheet(
    name: str, title: str, caption: str, examples: Sequence[Example], classes: Sequence[str], most: int = 10
) -> Figure:
    """Draws one row for each example: the image, the map of each network, and the distributions as bars.

    Args:
      name: Short name of the figure.
      title: Title of its section.
      caption: Caption.
      examples: Examples with the same networks.
      classes: Names of all classes.
      most: Number of classes that a row shows, the most likely ones.
    """
    first = examples[0]
    shown = ([""] if first.image is not None else []) + list(first.maps)
    ratios = [1] * len(shown) + [2.6]
    options = {"nrows": len(examples), "ncols": len(shown) + 1, "gridspec_kw": {"width_ratios": ratios}}
    with drawing(name, (1.5 * len(shown) + 4.6, 1.75 * len(examples) + 0.4), **options) as draw:
        for row, example in zip(draw.axes, examples, strict=True):
            if example.image is not None:
                row[0].set_ylabel(f"label {example.label}", fontsize=8)
                for axis, network in zip(row, shown):
                    _picture(axis, example.image, example.maps.get(network))
            _bars(row[-1], example, classes, most)
        for axis, network in zip(draw.axes[0], shown):
            axis.set_title(f"map of {network.split()[0]}" if network else "image", fontsize=8)  # only '#3' fits
        draw.axes[-1, -1].set_xlabel("class")
        columns = max(1, min(3, WIDTH // max(len(_short(label)) for label in first.distributions)))
        draw.axes[0, -1].legend(fontsize=7, ncols=columns, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0)
    return Figure(name, title, draw.svg, caption)


def _short(label: str) -> str:
    """Returns a label that fits over the bars, without the middle of a long one."""
    half = WIDTH // 2 - 2
    return label if len(label) <= WIDTH else f"{label[:half]} … {label[-half:]}"


def _picture(axis: "Axes", image: np.ndarray, activation: np.ndarray | None) -> None:
    """Draws an image; with a class-activation map, darker where the map is low, with a contour at 0.4."""
    if activation is None:
        axis.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255)
    else:
        bright = image / 255 * (0.15 + 0.85 * activation[..., None])
        axis.imshow(bright.squeeze(), cmap="gray", vmin=0, vmax=1)
        axis.contour(activation, levels=[0.4], colors="white", linewidths=1.2)
    axis.set_xticks([])
    axis.set_yticks([])


def _bars(axis: "Axes", example: Example, classes: Sequence[str], most: int) -> None:
    table = np.stack(list(example.distributions.values()))
    likely = np.sort(np.argsort(-table.max(axis=0), kind="stable")[:most])
    width = 0.8 / len(table)
    for i, (name, values) in enumerate(example.distributions.items()):
        places = np.arange(len(likely)) + (i - (len(table) - 1) / 2) * width
        shade, hatch = SHADES[i % len(SHADES)], HATCHES[i % len(HATCHES)]
        bars = {"label": _short(name), "facecolor": shade, "hatch": hatch, "edgecolor": "#000000", "linewidth": 0.7}
        axis.bar(places, values[likely], width, **bars)
    axis.set_xticks(range(len(likely)), [classes[k] for k in likely], fontsize=7)
    axis.set(ylim=(0, 1), ylabel="probability" if example.image is not None else f"label {example.label}\nprobability")

"""Style of the figures, and SVG that can stand in an HTML page. The styles are distinguishable in greyscale."""

import contextlib
import io
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#000000", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9", "#777777")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 2)), (0, (3, 3)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\", "++++")
MOST = len(COLOURS)  # number of curves in one figure that can be told apart
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "text.parse_math": False,  # a name may contain $
    "svg.fonttype": "none",  # text remains text, so that it can be searched and read aloud
    "svg.hashsalt": "kdjax",  # the same figure has the same bytes
}


class Drawing:
    """A figure that is being drawn.

    Attributes:
      axes: Its axes [rows, columns], an array of `matplotlib.axes.Axes`.
      svg: The finished SVG element, '' until the drawing is done.
    """

    def __init__(self, axes: np.ndarray):
        self.axes, self.svg = axes, ""

    @property
    def figure(self) -> "Figure":
        """The figure that the axes are in."""
        return self.axes[0, 0].figure


@contextlib.contextmanager
def drawing(name: str, figsize: tuple[float, float], **options: Any) -> Iterator[Drawing]:
    """Gives the axes of a new figure, and turns them into SVG at the end of the block.

    Args:
      name: Name of the figure, with which the ids in its SVG begin.
      figsize: Width and height in inches.
      options: Further arguments of `matplotlib.figure.Figure.subplots`.
    """
    import matplotlib.style
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.style.context(STYLE):
        figure = Figure(layout="constrained", figsize=figsize)
        FigureCanvasSVG(figure)
        draw = Drawing(figure.subplots(squeeze=False, **options))
        yield draw
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
        draw.svg = inline_svg(file.getvalue(), name)


def inline_svg(text: str, name: str) -> str:
    """Returns an SVG file as an element that can stand in a page with others.

    Args:
      text: An SVG file of matplotlib.
      name: Prefix that makes its ids unique in the page.
    """
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    return re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text).strip()

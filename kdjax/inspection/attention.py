"""How far the image regions that several runs attend to overlap."""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jax import Array

from kdjax import analysis
from kdjax.inspection.inspected_run import InspectedRun, comparable_outputs
from kdjax.inspection.maps import MAPS, REFERENCE_CODE_BATCH, head_regions


class MapSource(NamedTuple):
    """Where the maps of a run come from.

    Attributes:
      run: Name of the run.
      map: Path of the layer whose output gives the maps.
      activation: Name in `maps.ACTIVATIONS` of the function that the network applies to this output.
    """

    run: str
    map: str
    activation: str


class Overlap(NamedTuple):
    """Overlap of the regions of two or three runs; all values are in [0, 1].

    Attributes:
      map: Kind of map, a name of `maps.MAPS`.
      runs: Names of the runs.
      empty: Share of the images in which no run has a region; 'iou' leaves them out.
      iou: Intersection over union, mean over images.
      pooled_iou: Intersection over union of all pixels of the split.
      reference_code_iou: What the code of Guo et al. prints: the mean of the pooled IoU of 128 images at a time.
    """

    map: str
    runs: tuple[str, ...]
    empty: float
    iou: float
    pooled_iou: float
    reference_code_iou: float


class Attention(NamedTuple):
    """What `attention` returns: one MapSource for each run, one Overlap for each kind of map and group of runs."""

    maps: list[MapSource]
    overlaps: list[Overlap]


def attention(runs: Sequence[InspectedRun]) -> Attention:
    """Measures how far the regions of every two and every three runs overlap, by class-activation map and by Grad-CAM.

    Args:
      runs: Two or more runs with the same examples in their split.

    Raises:
      UserError: The runs cannot be compared, or a network has no class-activation map.
    """
    comparable_outputs("attention", runs)
    sources = [MapSource(run.name, run.head.feature, run.head.activation) for run in runs]
    groups = [group for size in (2, 3) for group in itertools.combinations(range(len(runs)), size)]
    totals: dict[tuple[str, tuple[int, ...]], list] = {(kind, group): [] for kind in MAPS for group in groups}
    for regions in _regions(runs):
        for kind, group in totals:
            masks = [regions[i][kind] for i in group]
            totals[kind, group].append({**analysis.iou_sums(masks), **analysis.reference_code_iou_sums(masks)})
    overlaps = [
        Overlap(kind, tuple(runs[i].name for i in group), **analysis.means(analysis.add(*parts)))
        for (kind, group), parts in totals.items()
    ]
    return Attention(sources, overlaps)


def _regions(runs: Sequence[InspectedRun]) -> Iterator[list[dict[str, Array]]]:
    """Yields the regions of every run, kind of map -> bool [batch, height, width], batch by batch."""
    rows: np.ndarray = runs[0].rows
    size = runs[0].loaded.dataset.input_shape[:2]
    for start in range(0, len(rows), REFERENCE_CODE_BATCH):
        part = rows[start : start + REFERENCE_CODE_BATCH]
        yield [head_regions(run.loaded, run.head, part, size) for run in runs]

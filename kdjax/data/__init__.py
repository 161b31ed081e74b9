"""Data sets, their splits, the order of their examples; `kdjax.data.augment` is the part that runs on the device."""

from kdjax.data.dataset import Dataset, Rows, Source, Stored, resolve_view
from kdjax.data.sampler import epoch_order, eval_batches, train_batches
from kdjax.data.sources import DATASETS, load_dataset, shape_and_classes
from kdjax.data.splits import make_splits, split_hash

__all__ = [
    "DATASETS",
    "Dataset",
    "Rows",
    "Source",
    "Stored",
    "epoch_order",
    "eval_batches",
    "load_dataset",
    "make_splits",
    "resolve_view",
    "shape_and_classes",
    "split_hash",
    "train_batches",
]

"""Data sets, their splits and the order of their examples; `kdjax.data.views` augments images."""

from kdjax.data.dataset import Dataset, Rows, Source, Stored, resolve_view
from kdjax.data.sampler import Order, epoch_order, eval_batches, make_order, train_batches
from kdjax.data.sources import DATASETS, load_dataset, shape_and_classes
from kdjax.data.splits import make_splits, split_hash

__all__ = [
    "DATASETS",
    "Dataset",
    "Order",
    "Rows",
    "Source",
    "Stored",
    "epoch_order",
    "eval_batches",
    "load_dataset",
    "make_order",
    "make_splits",
    "resolve_view",
    "shape_and_classes",
    "split_hash",
    "train_batches",
]

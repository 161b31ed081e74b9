"""The store: a folder of runs, each with its manifest, metrics, result and checkpoints."""

from kdjax.store.run import FORMAT, Run
from kdjax.store.runs import Store

__all__ = ["FORMAT", "Run", "Store"]

"""Runs by name: manifests, metrics, results and checkpoints. All that kdjax writes to disk goes through here."""

from kdjax.store.run import FORMAT, Run
from kdjax.store.runs import Store

__all__ = ["FORMAT", "Run", "Store"]

"""Runs by name: manifests, metrics, results and checkpoints. All that kdjax writes to disk goes through here."""

from kdjax.store.run import FORMAT, Run
from kdjax.store.runs import Store
from kdjax.store.weight_files import file_sha256, read_weights, write_weights

__all__ = ["FORMAT", "Run", "Store", "file_sha256", "read_weights", "write_weights"]

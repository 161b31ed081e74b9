"""The store: a folder of runs, each with its manifest, metrics, result and checkpoints.

The folder of a run:

manifest.json   format, resolved config, versions, hashes; written when the run begins
metrics.jsonl   a row for each epoch
result.json     scores; written when the run is finished
lock            locked by the process that trains the run
checkpoints/    <step>/ by orbax, while the run is in progress and if its state is large; of a finished small run
                <step>.safetensors, the last state, and <step>.variables.safetensors, the best network
"""

import importlib
from typing import Any

from kdjax.store.run import FORMAT, Run
from kdjax.store.runs import Store

__all__ = ["FORMAT", "Run", "Store"]


def __getattr__(name: str) -> Any:
    if name == "read_weights":  # its place is kdjax.interop; scripts of earlier versions import it from here
        return importlib.import_module("kdjax.interop").read_weights
    raise AttributeError(f"module 'kdjax.store' has no attribute '{name}'")

"""The store: a folder of runs, each with its manifest, metrics, result and checkpoints.

The folder of a run:

manifest.json   format, resolved config, versions, hashes; written when the run begins
metrics.jsonl   a row for each epoch
result.json     scores; written when the run is finished
lock            locked by the process that trains the run
checkpoints/    <step>/ by orbax, while the run is in progress and if its state is large; of a finished small run
                <step>.safetensors, the last state, and <step>.variables.safetensors, the best network
"""

from kdjax.store.run import FORMAT, Run
from kdjax.store.runs import Store

__all__ = ["FORMAT", "Run", "Store"]

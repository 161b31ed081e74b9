"""What a run of the store says about data: scores of its splits."""

from collections.abc import Sequence

import jax
from ml_collections import ConfigDict

from kdjax.data import load_dataset
from kdjax.store import Store
from kdjax.training.evaluation import evaluate, stream_if_needed
from kdjax.training.networks import load_network


def score_run(
    store: Store,
    name: str,
    checkpoint: str = "last",
    data_dir: str = "data",
    devices: Sequence[jax.Device] | None = None,
) -> dict:
    """Returns {'run', 'step', split: {'loss', 'accuracy', 'top5'}} of a run on the splits of its own data set.

    Args:
      store: that has the run.
      name: of the run.
      checkpoint: 'last', 'best' or a step.
      data_dir: where data sets that are not embedded lie.
      devices: of this process; all of them by default.

    Raises:
      UserError: no such run or checkpoint, or its data is not there.
    """
    network = load_network(store.find(name), checkpoint)
    config = ConfigDict(network.manifest["config"])
    devices = tuple(devices or jax.local_devices())
    dataset = stream_if_needed(load_dataset(config.data, data_dir), config.data.stream, devices)
    batch_size = -(-config.eval_batch_size // len(devices)) * len(devices)
    splits = [split for split in ("train", "validation", "test") if split in dataset.splits]
    scores = {
        split: evaluate(network.model, network.variables, dataset, split, batch_size, devices) for split in splits
    }
    return {"run": name, "step": network.step, **scores}

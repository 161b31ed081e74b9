"""A cross of teachers and students on images whose human label distributions are known, and the noise of those."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from kdjax import analysis
from kdjax.data import load_dataset
from kdjax.store import Store
from kdjax.studies import cross
from kdjax.training.loop import train

CHOOSING = 10_000  # the seed that chooses learning rates, which is not reported


class Outcome(NamedTuple):
    """What the study found.

    Attributes:
      pairs: (job, result) of every run.
      floors: split -> mean squared distance between the measured distributions and the true ones, which nobody knows:
        what is expected of the raters' number alone.
      entropies: split -> mean entropy of the human labels, in nats.
      rates: teacher -> the learning rate that it was trained at.
    """

    pairs: list[tuple]
    floors: dict[str, float]
    entropies: dict[str, float]
    rates: dict[str, float]


def run(study: ConfigDict, store: Store, data_dir: str, counter: Callable[[int], Callable[[str], None]]) -> Outcome:
    """Trains all runs of the study, each teacher at its best learning rate; human labels choose nothing.

    Args:
      study: as of kind 'cross', with `raters`, how many people labelled an image, and `rates`, of which every teacher
        takes the one of the best validation accuracy on a seed of its own.
      store, data_dir, counter: as `studies.cross.run` takes them.
    """
    done = counter(len(study.teachers) * len(study.rates))
    rates = {name: _best_rate(config, study.rates, store, data_dir, done) for name, config in study.teachers.items()}
    study = ConfigDict(study.to_dict())
    for name, rate in rates.items():
        study.teachers[name].optimizer.learning_rate = rate
    pairs = cross.run(study, store, data_dir, counter)
    data = load_dataset(pairs[0][0].config.data, data_dir)  # every run's, but for the split seed
    soft = {split: data.soft[data.splits[split]].astype(np.float64) for split in ("train", "test")}
    floors = {split: float(np.mean(analysis.sampling_noise_estimate(p, study.raters))) for split, p in soft.items()}
    logs = {split: np.log(np.where(p > 0, p, 1)) for split, p in soft.items()}
    entropies = {split: float(-(p * logs[split]).sum(axis=1).mean()) for split, p in soft.items()}
    return Outcome(pairs, floors, entropies, rates)


def _best_rate(
    teacher: ConfigDict, rates: Sequence[float], store: Store, data_dir: str, done: Callable[[str], None]
) -> float:
    """Of several equal ones the first."""
    scores = []
    for rate in rates:
        config = ConfigDict(teacher.to_dict())
        config.seed, config.optimizer.learning_rate = CHOOSING, rate
        name = f"choosing/{config.name}-lr{rate:g}"
        scores.append(train(config, store, name=name, data_dir=data_dir, show=False)["best"]["validation"]["accuracy"])
        done(name)
    return rates[scores.index(max(scores))]

"""Targets ever farther from p*: how students do on mixtures of p* with labels, and with nothing but doubt.

The noise experiment of Hamidi et al., How to Train the Teacher Model for Effective Knowledge Distillation, ECCV 2024:
students learn epsilon * one-hot + (1 - epsilon) * p*. Its control moves targets as far from p* without any noise,
epsilon / classes + (1 - epsilon) * p*: what the distance does by itself.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from kdjax.data import load_dataset
from kdjax.store import Store
from kdjax.training.loop import train

CHOOSING = 10_000  # from here on seeds choose a rate


class Point(NamedTuple):
    """One student.

    Attributes:
      other: what p* was mixed with, 'labels' or 'uniform'.
      epsilon: how much of it.
      rate: its learning rate, the best on validation for such targets.
      seed: of the student; no two students share one.
      target_distance: mean squared distance of its targets to p*, summed over classes, on the training split.
      distance: that of the student's outputs on the test split.
      accuracy: on the test split, at the epoch of the best validation accuracy.
    """

    other: str
    epsilon: float
    rate: float
    seed: int
    target_distance: float
    distance: float
    accuracy: float


class Outcome(NamedTuple):
    """What the study found: accuracy of p* on the test split, and all students."""

    bayes: float
    points: list[Point]


def run(study: ConfigDict, store: Store, data_dir: str, counter: Callable[[int], Callable[[str], None]]) -> Outcome:
    """Trains the study's students.

    Args:
      study: of kind 'noise', see configs/studies/noise.py.
      store: for its runs; what is there is not trained again.
      data_dir: where data sets that are not embedded lie.
      counter: makes of the number of runs what is called after each with its name.
    """
    clean = load_dataset(study.student.data, data_dir)
    mixes = [(other, epsilon) for other, epsilons in study.mixes.items() for epsilon in epsilons]
    done, points = counter((len(study.rates) + study.seeds) * len(mixes)), []

    def student(config: ConfigDict) -> dict:
        mix = config.data.protocols.mixed_targets
        name = f"gaussian/student-{mix.other}-{mix.epsilon:g}-lr{config.optimizer.learning_rate:g}-s{config.seed}"
        best = train(config, store, name=name, data_dir=data_dir, show=False)["best"]
        done(name)
        return best

    for number, (other, epsilon) in enumerate(mixes):
        # Seeds that choose are not reported.
        found = {r: student(_config(study.student, other, epsilon, r, CHOOSING + number)) for r in study.rates}
        rate = max(found, key=lambda r: found[r]["validation"]["accuracy"])
        for seed in range(number * study.seeds, (number + 1) * study.seeds):
            config = _config(study.student, other, epsilon, rate, seed)
            best, moved = student(config)["test"], _target_distance(clean, load_dataset(config.data, data_dir))
            points.append(Point(other, epsilon, rate, seed, moved, best["distance"], best["accuracy"]))
    rows = clean.splits["test"]
    bayes = float(np.mean(clean.soft[rows].argmax(axis=1) == clean.labels[rows]))
    return Outcome(bayes, points)


def _config(student: ConfigDict, other: str, epsilon: float, rate: float, seed: int) -> ConfigDict:
    config = ConfigDict(student.to_dict())
    config.seed, config.optimizer.learning_rate, config.data.targets = seed, rate, "soft"
    config.data.protocols = {"mixed_targets": {"epsilon": epsilon, "other": other}}
    return config


def _target_distance(clean, mixed) -> float:
    rows = clean.splits["train"]
    return float(np.mean(np.sum((mixed.soft[rows] - clean.soft[rows]) ** 2, axis=1)))

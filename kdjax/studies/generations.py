"""Generations of teachers: a patriarch, then students of which each teaches the next, and what stands beside them.

Yang, Xie, Qiao & Yuille, Training Deep Neural Networks in Generations: A More Tolerant Teacher Educates Better
Students, 2018; born-again networks (Furlanello et al. 2018) are the chain of a cross-entropy patriarch.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from kdjax.errors import UserError, nearest
from kdjax.store import Store
from kdjax.studies.transfer import probe
from kdjax.training.loop import train
from kdjax.training.predict import predict_run

FIELDS = (
    *("kind", "title", "seeds", "generations", "label_weights", "chains", "alone", "longest", "members", "report"),
    "transfer",
)
LONGER, INDEPENDENT = "trained m times as long", "m independent networks"


class Job(NamedTuple):
    """One run of the study.

    Attributes:
      row: the chain it belongs to, or LONGER, or INDEPENDENT.
      generation: 0 for a patriarch; for LONGER how many times as long, for INDEPENDENT its number from 1.
      seed: of the replication.
      name: of the run in the store.
      config: of the run.
    """

    row: str
    generation: int
    seed: int
    name: str
    config: ConfigDict


class Outcome(NamedTuple):
    """What the study found, all in [0, 1].

    Attributes:
      accuracy: (row, generation, seed) -> {'last', 'best', 'validation'}: test accuracy of the two checkpoints, and the
        best validation accuracy, which alone may choose.
      ensembles: (row, m, seed) -> test accuracy of the mean probability of generations 1 to m.
      transfer: (data set, row, generation, seed) -> test accuracy of a linear probe on the network's features.
      chosen: chain -> the generation that it is reported by.
    """

    accuracy: dict[tuple[str, int, int], dict[str, float]]
    ensembles: dict[tuple[str, int, int], float]
    transfer: dict[tuple[str, str, int, int], float]
    chosen: dict[str, int]


def make_jobs(study: ConfigDict) -> list[Job]:
    """Lists a study's runs, every teacher before its student.

    Args:
      study: `chains`: name -> {'patriarch': config, 'student': config}; the student's `label_weights[m - 1]` is the
        weight of its cross-entropy in generation m, the other losses share the rest as they stand to one another.
        `alone`: the config of the networks beside them. `longest` and `members`: up to which m those are trained.

    Raises:
      UserError: a field too many or too few, weights that are not as many as generations or not in [0, 1].
    """
    _check(study)
    jobs = []
    for seed in range(study.seeds):
        for chain, parts in study.chains.items():
            jobs += _chain_jobs(study, chain, parts, seed)
        for m in range(1, study.longest + 1):
            config = _seeded(study.alone, seed)
            config.epochs = m * config.epochs
            config.schedule.milestones = tuple(m * epoch for epoch in config.schedule.milestones)
            jobs.append(Job(LONGER, m, seed, f"{_folder(config)}-alone-x{m}-s{seed}", config))
        for m in range(1, study.members + 1):
            config = _seeded(study.alone, 1000 * m + seed)
            jobs.append(Job(INDEPENDENT, m, seed, f"{_folder(config)}-alone-member{m}-s{seed}", config))
    return jobs


def _chain_jobs(study: ConfigDict, chain: str, parts: Mapping, seed: int) -> list[Job]:
    jobs, short = [], chain.replace(" ", "_").replace(">", "")
    for m in range(study.generations + 1):
        config = _seeded(parts["student"] if m else parts["patriarch"], seed + 100 * m)
        if m:
            config.teachers = ConfigDict({"a": {"run": jobs[-1].name}})
            config.losses = _weighted(config.losses, study.label_weights[m - 1])
        jobs.append(Job(chain, m, seed, f"{_folder(config)}-{short}-gen{m}-s{seed}", config))
    return jobs


def _check(study: ConfigDict) -> None:
    for field in study:
        if field not in FIELDS:
            raise UserError(f"a study of generations has no field '{field}'.{nearest(field, FIELDS)}")
    for field in FIELDS[1:]:
        if field not in study:
            raise UserError(f"the study of generations lacks the field '{field}'.")
    weights = tuple(study.label_weights)
    if study.seeds < 1 or study.generations < 1:
        raise UserError(
            f"config.seeds and config.generations must be at least 1, not {study.seeds}, {study.generations}."
        )
    if len(weights) != study.generations or not all(0 <= weight <= 1 for weight in weights):
        raise UserError(
            f"config.label_weights must be {study.generations} numbers in [0, 1], one a generation, not {weights}."
        )
    if study.report not in ("validation", *(str(m) for m in range(1, study.generations + 1))):
        raise UserError(
            f"config.report must be 'validation' or a generation up to '{study.generations}', not {study.report!r}."
        )


def _seeded(config: ConfigDict, seed: int) -> ConfigDict:
    config = ConfigDict(config.to_dict())
    config.seed = seed
    return config


def _folder(config: ConfigDict) -> str:
    return f"{config.data.name.replace(':', '.')}/{config.model.name.replace(':', '.')}"


def _weighted(losses: Mapping, label_weight: float) -> ConfigDict:
    """Cross-entropy with the label's weight, the others with the rest of 1."""
    terms = {name: dict(term) for name, term in losses.items()}
    others = sum(term["weight"] for name, term in terms.items() if name != "cross_entropy")
    for name, term in terms.items():
        term["weight"] = label_weight if name == "cross_entropy" else (1 - label_weight) * term["weight"] / others
    return ConfigDict(terms)


def run(study: ConfigDict, store: Store, data_dir: str, counter: Callable[[int], Callable[[str], None]]) -> Outcome:
    """Trains what is not trained yet, then scores generations, their ensembles and what their features transfer to.

    Args:
      study: as `make_jobs` takes it.
      store: for its runs, ordinary ones: stopped anywhere, the same command goes on.
      data_dir: where data sets that are not embedded lie.
      counter: makes of the number of runs what is called after each with its name.
    """
    jobs = make_jobs(study)
    done = counter(len(jobs))
    accuracy = {}
    for job in jobs:
        result = train(job.config, store, name=job.name, data_dir=data_dir, show=False)
        accuracy[job.row, job.generation, job.seed] = _scores(result)
        done(job.name)
    chosen = {chain: _reported(study, accuracy, chain) for chain in study.chains}
    return Outcome(accuracy, _ensembles(jobs, store, data_dir), _transfers(study, jobs, store, data_dir), chosen)


def _scores(result: Mapping) -> dict[str, float]:
    best = result.get("best", result["last"])
    validation = best["validation"]["accuracy"] if "validation" in best else float("nan")
    return {
        "last": result["last"]["test"]["accuracy"],
        "best": best["test"]["accuracy"],
        "validation": validation,
    }


def _ensembles(jobs: Sequence[Job], store: Store, data_dir: str) -> dict[tuple[str, int, int], float]:
    """Of every chain and of the independent networks; patriarchs are no part of them."""
    found: dict[tuple[str, int, int], float] = {}
    sums: dict[tuple[str, int], Any] = {}
    for job in jobs:
        if job.row == LONGER or job.generation == 0:
            continue
        outputs = predict_run(store, job.name, "test", data_dir=data_dir)
        total = sums.get((job.row, job.seed), 0) + _softmax(outputs.logits)
        sums[job.row, job.seed] = total
        found[job.row, job.generation, job.seed] = float(np.mean(total.argmax(axis=1) == outputs.labels))
    return found


def _softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    return np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))


def _transfers(study: ConfigDict, jobs: Sequence[Job], store: Store, data_dir: str) -> dict:
    found = {}
    for name, data in study.transfer.items():
        for job in jobs:
            if job.row in study.chains:
                score = probe(store, job.name, data, data_dir)
                found[name, job.row, job.generation, job.seed] = score
    return found


def _reported(study: ConfigDict, accuracy: Mapping, chain: str) -> int:
    """Fixed beforehand, or the best mean validation accuracy over all seeds; the test split decides nothing."""
    if study.report != "validation":
        return int(study.report)
    means = {
        m: np.mean([accuracy[chain, m, seed]["validation"] for seed in range(study.seeds)])
        for m in range(1, study.generations + 1)
    }
    return max(means, key=means.get)

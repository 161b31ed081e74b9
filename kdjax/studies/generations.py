"""Generations of teachers: a patriarch, then students of which each teaches the next, and what stands beside them.

Yang, Xie, Qiao & Yuille, Training Deep Neural Networks in Generations: A More Tolerant Teacher Educates Better
Students, 2018; born-again networks (Furlanello et al. 2018) are the chain of a cross-entropy patriarch.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from kdjax import config as schema
from kdjax.data import Dataset, load_dataset, split_hash
from kdjax.errors import UserError, nearest
from kdjax.inspection.linear_probe import probe
from kdjax.inspection.predict import predict_run
from kdjax.store import Store
from kdjax.training.loop import train
from kdjax.training.plan import make_plan, rehearse, resolve
from kdjax.training.teachers import Teacher

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
      accuracy: (row, generation, seed) -> {'last', 'best', 'validation'}: test accuracy of the two checkpoints, and
        validation accuracy of the last, which alone may choose.
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
      UserError: a field too many or too few, weights that are not as many as generations or not in [0, 1], a chain that
        is not whole, controls that stop before the generation that is reported, or two runs of one name.
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
            config.schedule.warmup_epochs = m * config.schedule.warmup_epochs
            jobs.append(Job(LONGER, m, seed, f"{_folder(config)}-alone-x{m}-s{seed}", config))
        for m in range(1, study.members + 1):
            config = _seeded(study.alone, 1000 * m + seed)
            jobs.append(Job(INDEPENDENT, m, seed, f"{_folder(config)}-alone-member{m}-s{seed}", config))
    names = [job.name for job in jobs]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"two runs of the study would be called '{twice[0]}'; give one of its chains another name.")
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
    _check_counts(study)
    _check_label_weights(study)
    if not study.chains:
        raise UserError("config.chains is empty: name one at least, {'tolerant': {'patriarch': ..., 'student': ...}}.")
    for chain, parts in study.chains.items():
        _check_chain(chain, parts)
    _located("config.alone", schema.check, study.alone)


def _check_counts(study: ConfigDict) -> None:
    """Refuses a report that cannot be, and controls that end before a generation which may be reported."""
    if study.seeds < 1 or study.generations < 1:
        raise UserError(
            f"config.seeds and config.generations must be at least 1, not {study.seeds}, {study.generations}."
        )
    if study.report not in ("validation", *(str(m) for m in range(1, study.generations + 1))):
        raise UserError(
            f"config.report must be 'validation' or a generation up to '{study.generations}', not {study.report!r}."
        )
    last = study.generations if study.report == "validation" else int(study.report)
    for field in ("longest", "members"):
        if study[field] != 0 and study[field] < last:
            raise UserError(
                f"config.{field} must be at least {last}, a generation that may be reported, or 0 for none of these "
                f"networks, not {study[field]}."
            )


def _check_label_weights(study: ConfigDict) -> None:
    weights = study.label_weights
    count = study.generations
    if not isinstance(weights, tuple | list) or len(weights) != count or not all(map(_is_share, weights)):
        raise UserError(f"config.label_weights must be {count} numbers in [0, 1], one a generation, not {weights}.")


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _check_chain(chain: str, parts: Any) -> None:
    """Refuses a chain without its two whole configs, or whose student has no two losses for a weight to go between."""
    where = f"config.chains.{chain}"
    if chain in (LONGER, INDEPENDENT):
        raise UserError(f"{where}: that is the name of the networks beside the chains; choose another.")
    if not isinstance(parts, Mapping | ConfigDict) or set(parts) != {"patriarch", "student"}:
        raise UserError(f"{where} must be {{'patriarch': config, 'student': config}}, two whole configs of runs.")
    for part in ("patriarch", "student"):
        _located(f"{where}.{part}", schema.check, parts[part])
        for name, term in parts[part].losses.items():
            if term.get("space") == "logits":
                raise UserError(f"{where}.{part}.losses.{name}.space must be 'probs': the next reads its softmax.")
    terms = parts["student"].losses
    others = [term.weight for name, term in terms.items() if name != "cross_entropy"]
    numbers = all(isinstance(weight, int | float) and weight >= 0 for weight in others)
    if "cross_entropy" not in terms or not numbers or not sum(others) > 0:
        raise UserError(
            f"{where}.student.losses must have 'cross_entropy', which gets config.label_weights, and others with "
            "numbers above 0 for weights, which share the rest."
        )
    if parts["student"].teachers:
        raise UserError(f"{where}.student.teachers must be empty: its teacher is the generation before.")


def _seeded(config: ConfigDict, seed: int) -> ConfigDict:
    config = ConfigDict(config.to_dict())
    config.seed = seed
    return config


def _folder(config: ConfigDict) -> str:
    return f"{schema.data_name(config)}/{config.model.name.replace(':', '.')}"


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

    Raises:
      UserError: a mistake in the study, in any of its configs, networks, losses or data, before anything is trained.
    """
    jobs = make_jobs(study)
    for job in jobs:
        stored, config = store.run(job.name), _located(f"run '{job.name}'", resolve, job.config)
        if stored.manifest is not None:
            stored.begin({"config": config.to_dict()})  # refuses a changed config
    _check_data(study, data_dir)
    _rehearse(study, jobs, store, data_dir)
    done = counter(len(jobs))
    accuracy = {}
    for job in jobs:
        result = train(job.config, store, name=job.name, data_dir=data_dir, show=False)
        accuracy[job.row, job.generation, job.seed] = _scores(result)
        done(job.name)
    chosen = {chain: _reported(study, accuracy, chain) for chain in study.chains}
    return Outcome(accuracy, _ensembles(jobs, store, data_dir), _transfers(study, jobs, store, data_dir), chosen)


def _check_data(study: ConfigDict, data_dir: str) -> None:
    """Refuses what would else come out after days: splits that are not there, probes that networks cannot see."""
    needed = {"test": "to tell of"} | ({"validation": "to choose on"} if study.report == "validation" else {})
    runs = {f"config.chains.{chain}.{part}": parts[part] for chain, parts in study.chains.items() for part in parts}
    seen: dict[str, Dataset] = {}
    shapes = {run: _look(f"{run}.data", part.data, needed, data_dir, seen).input_shape for run, part in runs.items()}
    _look("config.alone.data", study.alone.data, {"test": "to tell of"}, data_dir, seen)
    for name, data in study.transfer.items():
        where = f"config.transfer.{name}"
        whole = {**schema.defaults().to_dict(), "data": data, "losses": {"cross_entropy": {"weight": 1.0}}}
        _located(where, schema.check, ConfigDict(whole))
        splits = {"test": "to tell of", "validation": "to choose the strength on"}
        other = _look(where, data, splits, data_dir, seen).input_shape
        for run, own in shapes.items():
            if own != other:
                a, b = ("x".join(map(str, shape)) for shape in (own, other))
                only_size = len(own) == len(other) == 3 and own[2] == other[2]
                hint = f"; set {where}.size to {own[0]}" if only_size else ""
                raise UserError(f"{where}: the networks of {run} take {a}, not {b}{hint}.")


def _look(
    where: str, config: ConfigDict, needed: Mapping[str, str], data_dir: str, seen: dict[str, Dataset]
) -> Dataset:
    """Loads data that must have some splits; the same data once: large sets take a while."""
    key = str(config.to_dict())
    if key not in seen:
        seen[key] = _located(where, load_dataset, config, data_dir)
    for split, use in needed.items():
        if not len(seen[key].splits.get(split, ())):
            raise UserError(f"{where}: data set '{config.name}' has no {split} split {use}.")
    return seen[key]


def _rehearse(study: ConfigDict, jobs: Sequence[Job], store: Store, data_dir: str) -> None:
    """Plans the first runs of every kind with teachers as they are drawn; all others differ from these in numbers."""
    first = [job for job in jobs if job.seed == 0 and job.generation <= (2 if job.row in study.chains else 1)]
    new = {job.row for job in first if store.run(job.name).manifest is None}
    drawn: dict[str, Teacher] = {}
    for job in first:
        if job.row in new:
            drawn[job.name] = _located(f"run '{job.name}'", _draw, study, job, drawn, store, data_dir)


def _draw(study: ConfigDict, job: Job, drawn: Mapping[str, Teacher], store: Store, data_dir: str) -> Teacher:
    """Plans one run and returns its untrained network, a teacher for the next."""
    config = resolve(job.config)
    taught = job.row in study.chains and job.generation > 0  # all others may have teachers from the store
    teachers = {name: drawn[teacher.run] for name, teacher in config.teachers.items()} if taught else None
    plan = make_plan(config, store, data_dir, jax.local_devices(), teachers)
    output = rehearse(plan)
    if study.transfer and job.row in study.chains and output.pooled is None:
        raise UserError(
            f"'{config.model.name}' has no pooled vector, which config.transfer needs; name one by config.model.pooled."
        )
    data, dataset = config.data.to_dict(), plan.dataset  # what it will have seen
    seen = (data, split_hash(dataset.labelled_train), dataset.class_names)
    return Teacher(plan.spec.model, plan.variables, dataset.num_classes, "softmax", {}, *seen)


def _located(where: str, check: Callable, *args: Any) -> Any:
    """Returns what `check` returns; its mistakes say where in the study they are."""
    try:
        return check(*args)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _scores(result: Mapping) -> dict[str, float]:
    last, best = result["last"], result.get("best", result["last"])
    # The checkpoint that is reported is the one that is chosen by.
    validation = last["validation"]["accuracy"] if "validation" in last else float("nan")
    return {"last": last["test"]["accuracy"], "best": best["test"]["accuracy"], "validation": validation}


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

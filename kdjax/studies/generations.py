"""Generations of teachers: a patriarch, then students each of which teaches the next, and networks to compare with.

Yang, Xie, Qiao & Yuille, Training Deep Neural Networks in Generations: A More Tolerant Teacher Educates Better
Students, 2018; born-again networks (Furlanello et al. 2018) are the chain of a cross-entropy patriarch.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import jax
import numpy as np

from kdjax import analysis
from kdjax import config as schema
from kdjax.data import Dataset, load_dataset, split_hash
from kdjax.errors import UserError
from kdjax.inspection.linear_probe import probe
from kdjax.inspection.predict import predict_run
from kdjax.reporting.contrasts import interval
from kdjax.reporting.figures import Figure, Series, curves
from kdjax.reporting.tables import markdown, spread
from kdjax.run_names import data_name
from kdjax.store import Store
from kdjax.studies.fields import RunConfig, check_at_least
from kdjax.studies.runner import FinishedRun, Job, Runner, located, seeded
from kdjax.training.plan import make_plan, rehearse, resolve
from kdjax.training.teachers import Teacher

LONGER, INDEPENDENT = "trained m times as long", "m independent networks"


class Generation(NamedTuple):
    """Which network of the study a run is, or up to which generation a mean is taken.

    Attributes:
      row: Name of its chain, LONGER or INDEPENDENT.
      m: Number of the generation, 0 for a patriarch; for LONGER how many times as long the network is trained, for
        INDEPENDENT its number from 1.
      seed: Seed of the replication.
    """

    row: str
    m: int
    seed: int


class Accuracies(NamedTuple):
    """Accuracies of one run in [0, 1].

    Attributes:
      last: Test accuracy of the last checkpoint.
      best: Test accuracy of the best checkpoint by validation, or of the last where none is kept.
      validation: Validation accuracy of the last checkpoint, by which a generation is chosen; NaN without validation.
    """

    last: float
    best: float
    validation: float


class GenerationsOutcome(NamedTuple):
    """What the study found, all accuracies in [0, 1].

    Attributes:
      accuracy: Accuracies of every run.
      ensembles: Test accuracy of the mean probability of generations 1 to m of a row.
      transfer: (data set, row, m, seed) -> test accuracy of a linear probe on the network's features.
      chosen: Name of a chain -> generation by which it is reported.
    """

    accuracy: dict[Generation, Accuracies]
    ensembles: dict[Generation, float]
    transfer: dict[tuple[str, str, int, int], float]
    chosen: dict[str, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chain:
    """Configs of a chain: of its first teacher, and of the student of every later generation."""

    patriarch: RunConfig
    student: RunConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationsStudy:
    """Fields of a study of kind 'generations'.

    Attributes:
      title: Title of the report.
      seeds: Number of replications.
      generations: Number of generations after the patriarch.
      label_weights: Weight of the student's cross-entropy in generation 1, 2, ..., in [0, 1]; its other losses share
        the rest in proportion to their weights.
      chains: Name -> configs of a chain.
      alone: Config of the networks that chains are compared with.
      longest: One network is trained m times as long for m up to this number; 0 for none.
      members: Number of independent networks, whose ensembles are compared with chains; 0 for none.
      report_by: `report` in configs: generation by which a chain is reported, a number or 'validation' for that of the
        best mean validation accuracy.
      transfer: Name -> config.data of another set, on which the features of all generations are probed.
    """

    title: str
    seeds: int = 5
    generations: int
    label_weights: tuple[float, ...]
    chains: dict[str, Chain]
    alone: RunConfig
    longest: int = 0
    members: int = 0
    report_by: str = dataclasses.field(default="validation", metadata={"name": "report"})
    transfer: dict[str, RunConfig] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_counts(self)
        weights = self.label_weights
        if len(weights) != self.generations or not all(0 <= weight <= 1 for weight in weights):
            raise UserError(
                f"config.label_weights must be {self.generations} numbers in [0, 1], one per generation, not {weights}."
            )
        if not self.chains:
            raise UserError(
                "config.chains is empty: name at least one, {'tolerant': {'patriarch': ..., 'student': ...}}."
            )
        for name, chain in self.chains.items():
            _check_chain(name, chain)
        with located("config.alone"):
            schema.check(self.alone)

    def run(self, runner: Runner) -> GenerationsOutcome:
        """Trains all networks, then scores generations, their ensembles and what their features transfer to.

        Every mistake in the study, its configs, networks, losses or data is refused before anything is trained.
        """
        stages = make_stages(self)
        jobs = [job for stage in stages for job in stage]
        runner.check(jobs)
        _check_data(self, runner.data_dir)
        _rehearse(self, jobs, runner)
        # Sorted, so that tables have one order of rows: by seed, then chains, then the networks beside them.
        order = {row: place for place, row in enumerate((*self.chains, LONGER, INDEPENDENT))}
        runs = sorted(runner.run_stages(stages), key=lambda run: (run.key.seed, order[run.key.row], run.key.m))
        accuracy = {run.key: _accuracies(run) for run in runs}
        return GenerationsOutcome(
            accuracy,
            ensembles=_ensembles(runs, runner),
            transfer=_transfer(self, runs, runner),
            chosen={chain: _reported(self, accuracy, chain) for chain in self.chains},
        )

    def report(self, outcome: GenerationsOutcome) -> str:
        """Returns the tables of accuracies, ensembles, differences and transfer in Markdown."""
        how = "chosen on validation over all seeds" if self.report_by == "validation" else "fixed beforehand"
        parts = [
            f"# {self.title}",
            f"Test accuracy in %, last checkpoint; ± is the standard deviation over {self.seeds} seeds. Generation 0 "
            "is the patriarch; m counts generations, times the length, or networks.",
            _grid({key: scores.last for key, scores in outcome.accuracy.items()}),
            "Mean probability of generations (or networks) 1 to m:",
            _grid(outcome.ensembles),
            f"The generation by which a chain is reported ({how}), and its difference from its patriarch, other chains "
            "and other networks, paired by seed, [ ] a 95 % t interval over seeds:",
            _differences_table(outcome),
        ]
        if outcome.transfer:
            parts += [
                "Linear probe on the features, strength chosen on validation:",
                _probes_table(outcome),
                "What the reported generation's features gain over others, paired by seed:",
                _probe_differences_table(outcome),
            ]
        return "\n\n".join(parts) + "\n"

    def figures(self, outcome: GenerationsOutcome) -> list[Figure]:
        """Returns accuracy by generation, and that of the mean of generations 1 to m."""
        accuracy = {key: scores.last for key, scores in outcome.accuracy.items()}
        panels = {
            ("m: generation, times as long, networks", "test accuracy [%]"): _lines(accuracy),
            ("m: mean of 1 to m", "test accuracy [%]"): _lines(outcome.ensembles),
        }
        caption = (
            f"Last checkpoint; a band is the standard deviation over {self.seeds} seeds, generation 0 the patriarch."
        )
        return [curves("generations", "Generations", caption, panels)]


def _check_counts(study: GenerationsStudy) -> None:
    """Refuses an impossible generation to report, and controls that end before a generation that may be reported."""
    check_at_least(1, seeds=study.seeds, generations=study.generations)
    if study.report_by not in ("validation", *(str(m) for m in range(1, study.generations + 1))):
        raise UserError(
            f"config.report must be 'validation' or a generation up to '{study.generations}', not {study.report_by!r}."
        )
    last = study.generations if study.report_by == "validation" else int(study.report_by)
    for field, count in (("longest", study.longest), ("members", study.members)):
        if count != 0 and count < last:
            raise UserError(
                f"config.{field} must be at least {last}, a generation that may be reported, or 0 for none of these "
                f"networks, not {count}."
            )


def _check_chain(name: str, chain: Chain) -> None:
    """Refuses a chain with a wrong config, or whose student lacks two losses to divide the weight between."""
    where = f"config.chains.{name}"
    if name in (LONGER, INDEPENDENT):
        raise UserError(f"{where}: this is the name of the networks beside the chains; choose another.")
    for part, config in (("patriarch", chain.patriarch), ("student", chain.student)):
        with located(f"{where}.{part}"):
            schema.check(config)
        for loss, term in config.losses.items():
            if term.get("space") == "logits":
                raise UserError(
                    f"{where}.{part}.losses.{loss}.space must be 'probs': the next generation reads its softmax."
                )
    terms = chain.student.losses
    others = [term.weight for loss, term in terms.items() if loss != "cross_entropy"]
    numbers = all(isinstance(weight, int | float) and weight >= 0 for weight in others)
    if "cross_entropy" not in terms or not numbers or not sum(others) > 0:
        raise UserError(
            f"{where}.student.losses must have 'cross_entropy', which gets config.label_weights, and other losses "
            "whose weights are numbers above 0, which share the rest."
        )
    if chain.student.teachers:
        raise UserError(f"{where}.student.teachers must be empty: its teacher is the generation before.")


def make_stages(study: GenerationsStudy) -> list[list[Job[Generation]]]:
    """Returns a stage for each generation; networks that are compared with chains are in the first one.

    Args:
      study: The study.

    Raises:
      UserError: Two runs would have one name.
    """
    stages: list[list[Job[Generation]]] = [[] for _ in range(study.generations + 1)]
    for seed in range(study.seeds):
        for name, chain in study.chains.items():
            for job in _chain_jobs(study, name, chain, seed):
                stages[job.key.m].append(job)
        for m in range(1, study.longest + 1):
            config = _longer(study.alone, seed, m)
            stages[0].append(Job(Generation(LONGER, m, seed), f"{_folder(config)}-alone-x{m}-s{seed}", config))
        for m in range(1, study.members + 1):
            config = seeded(study.alone, 1000 * m + seed)
            name = f"{_folder(config)}-alone-member{m}-s{seed}"
            stages[0].append(Job(Generation(INDEPENDENT, m, seed), name, config))
    names = [job.name for stage in stages for job in stage]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"two runs of the study would be called '{twice[0]}'; give one of its chains another name.")
    return stages


def _chain_jobs(study: GenerationsStudy, name: str, chain: Chain, seed: int) -> list[Job[Generation]]:
    jobs, short = [], name.replace(" ", "_").replace(">", "")
    for m in range(study.generations + 1):
        config = seeded(chain.student if m else chain.patriarch, seed + 100 * m)
        if m:
            config.teachers = RunConfig({"a": {"run": jobs[-1].name}})
            config.losses = _weighted(config.losses, study.label_weights[m - 1])
        jobs.append(Job(Generation(name, m, seed), f"{_folder(config)}-{short}-gen{m}-s{seed}", config))
    return jobs


def _longer(config: RunConfig, seed: int, m: int) -> RunConfig:
    """Returns a config with m times the epochs."""
    config = seeded(config, seed)
    config.epochs = m * config.epochs
    config.schedule.milestones = tuple(m * epoch for epoch in config.schedule.milestones)
    config.schedule.warmup_epochs = m * config.schedule.warmup_epochs
    return config


def _folder(config: RunConfig) -> str:
    return f"{data_name(config.data.name)}/{config.model.name.replace(':', '.')}"


def _weighted(losses: RunConfig, label_weight: float) -> RunConfig:
    """Returns losses with this weight of cross-entropy, and the rest of 1 divided among the others."""
    terms = losses.to_dict()
    others = sum(term["weight"] for name, term in terms.items() if name != "cross_entropy")
    for name, term in terms.items():
        term["weight"] = label_weight if name == "cross_entropy" else (1 - label_weight) * term["weight"] / others
    return RunConfig(terms)


def _check_data(study: GenerationsStudy, data_dir: str) -> None:
    """Refuses what would otherwise fail after all training: missing splits, and probes of the wrong image size."""
    found = _DataSets(data_dir)
    splits = ("test", "validation") if study.report_by == "validation" else ("test",)
    shapes = {}
    for name, chain in study.chains.items():
        for part, config in (("patriarch", chain.patriarch), ("student", chain.student)):
            where = f"config.chains.{name}.{part}"
            shapes[where] = found.load(f"{where}.data", config.data, splits).input_shape
    found.load("config.alone.data", study.alone.data, ("test",))
    for name, data in study.transfer.items():
        where = f"config.transfer.{name}"
        whole = {**schema.defaults().to_dict(), "data": data, "losses": {"cross_entropy": {"weight": 1.0}}}
        with located(where):
            schema.check(RunConfig(whole))
        other = found.load(where, data, ("test", "validation")).input_shape
        for run, own in shapes.items():
            if own != other:
                a, b = ("x".join(map(str, shape)) for shape in (own, other))
                only_size = len(own) == len(other) == 3 and own[2] == other[2]
                hint = f"; set {where}.size to {own[0]}" if only_size else ""
                raise UserError(f"{where}: the networks of {run} take {a}, not {b}{hint}.")


class _DataSets:
    """Loads data sets, each once, since large ones take a while."""

    USES = {"test": "to report accuracy on", "validation": "to choose settings on"}

    def __init__(self, data_dir: str):
        self.data_dir, self.loaded = data_dir, {}

    def load(self, where: str, config: RunConfig, splits: Sequence[str]) -> Dataset:
        """Returns a data set that has the splits; UserError says where in the study it lacks one."""
        key = str(config.to_dict())
        if key not in self.loaded:
            with located(where):
                self.loaded[key] = load_dataset(config, self.data_dir)
        for split in splits:
            if not len(self.loaded[key].splits.get(split, ())):
                raise UserError(f"{where}: data set '{config.name}' has no {split} split {self.USES[split]}.")
        return self.loaded[key]


def _rehearse(study: GenerationsStudy, jobs: Sequence[Job[Generation]], runner: Runner) -> None:
    """Plans the first runs of every row with untrained teachers; all other runs differ from these in numbers only."""
    first = [job for job in jobs if job.key.seed == 0 and job.key.m <= (2 if job.key.row in study.chains else 1)]
    new = {job.key.row for job in first if runner.store.run(job.name).manifest is None}
    untrained: dict[str, Teacher] = {}
    for job in first:
        if job.key.row in new:
            with located(f"run '{job.name}'"):
                untrained[job.name] = _plan_untrained(study, job, untrained, runner.store, runner.data_dir)


def _plan_untrained(
    study: GenerationsStudy, job: Job[Generation], untrained: Mapping[str, Teacher], store: Store, data_dir: str
) -> Teacher:
    """Plans one run and returns its untrained network, as a teacher for the next."""
    config = cast(RunConfig, resolve(job.config))
    in_chain = job.key.row in study.chains
    # Only later generations learn from the study's runs; teachers of all others are in the store.
    teachers = (
        {name: untrained[field.run] for name, field in config.teachers.items()} if in_chain and job.key.m else None
    )
    plan = make_plan(config, store, data_dir, jax.local_devices(), teachers)
    output = rehearse(plan)
    if study.transfer and in_chain and output.pooled is None:
        raise UserError(
            f"'{config.model.name}' has no pooled vector, which config.transfer needs; name one by config.model.pooled."
        )
    data, dataset = config.data.to_dict(), plan.dataset
    trained_on = (data, split_hash(dataset.labelled_train), dataset.class_names)
    return Teacher(plan.spec.model, plan.variables, dataset.num_classes, "softmax", {}, *trained_on)


def _accuracies(run: FinishedRun[Generation]) -> Accuracies:
    best = "best" if "best" in run.result else "last"
    # A generation is chosen by the checkpoint that is reported.
    validation = run.score("last", "validation") if "validation" in run.result["last"] else float("nan")
    return Accuracies(run.score("last", "test"), run.score(best, "test"), validation)


def _ensembles(runs: Sequence[FinishedRun[Generation]], runner: Runner) -> dict[Generation, float]:
    """Returns accuracies of mean probabilities, of chains without their patriarchs and of independent networks."""
    found: dict[Generation, float] = {}
    sums: dict[tuple[str, int], np.ndarray] = {}
    for run in runs:
        row, m, seed = run.key
        if row != LONGER and m > 0:
            outputs = predict_run(runner.store, run.name, "test", data_dir=runner.data_dir)
            sums[row, seed] = sums.get((row, seed), np.zeros(())) + analysis.softmax(outputs.logits)
            found[run.key] = analysis.accuracy(sums[row, seed], outputs.labels)
    return found


def _transfer(
    study: GenerationsStudy, runs: Sequence[FinishedRun[Generation]], runner: Runner
) -> dict[tuple[str, str, int, int], float]:
    return {
        (name, run.key.row, run.key.m, run.key.seed): probe(runner.store, run.name, data, runner.data_dir)
        for name, data in study.transfer.items()
        for run in runs
        if run.key.row in study.chains
    }


def _reported(study: GenerationsStudy, accuracy: Mapping[Generation, Accuracies], chain: str) -> int:
    """Returns the generation that was fixed, or that of the best mean validation accuracy over all seeds."""
    if study.report_by != "validation":
        return int(study.report_by)
    means = {
        m: np.mean([accuracy[Generation(chain, m, seed)].validation for seed in range(study.seeds)])
        for m in range(1, study.generations + 1)
    }
    return max(means, key=lambda m: means[m])


def _lines(values: Mapping[Generation, float]) -> list[Series]:
    """Returns a line per row: values in % of all seeds at each m."""
    series = []
    for row, columns in _by_row(values).items():
        places = sorted(columns)
        series.append(Series(row, places, [columns[m] for m in places]))
    return series


def _grid(values: Mapping[Generation, float]) -> str:
    """Returns a table in % with a row per row and a column per m."""
    columns = sorted({key.m for key in values})
    rows = [(row, *(spread(own.get(m, [])) for m in columns)) for row, own in _by_row(values).items()]
    return markdown(("", *(f"m = {m}" for m in columns)), rows)


def _by_row(values: Mapping[Generation, float]) -> dict[str, dict[int, list[float]]]:
    """Returns row -> m -> values in % of all seeds."""
    found: dict[str, dict[int, list[float]]] = {}
    for (row, m, _), value in values.items():
        found.setdefault(row, {}).setdefault(m, []).append(100 * value)
    return found


def _differences_table(outcome: GenerationsOutcome) -> str:
    others, rows = dict.fromkeys(key.row for key in outcome.accuracy if key.row not in outcome.chosen), []
    for chain, m in outcome.chosen.items():
        own = _last(outcome, chain, m)
        for name, row, generation in [*_chains_beside(outcome, chain), *((row, row, m) for row in others)]:
            base = _last(outcome, row, generation)
            if base:  # networks beside the chains may end before
                rows.append((f"{chain}, m = {m}", name, _gain(own, base)))
    return markdown(("generation", "against", "difference"), rows)


def _chains_beside(outcome: GenerationsOutcome, chain: str) -> list[tuple[str, str, int]]:
    """Returns (label, chain, m) of a reported generation's patriarch, and of the same generation of other chains."""
    m = outcome.chosen[chain]
    others = [(f"generation {m} of {other}", other, m) for other in outcome.chosen if other != chain]
    return [(f"generation 0 of {chain}", chain, 0), *others]


def _gain(own: Mapping[int, float], base: Mapping[int, float]) -> str:
    """Returns the interval in % of differences of seed -> accuracy, paired by seed."""
    return interval([100 * (own[seed] - base[seed]) for seed in own])


def _last(outcome: GenerationsOutcome, row: str, m: int) -> dict[int, float]:
    """Returns seed -> accuracy of the last checkpoint; of independent networks that of their ensemble."""
    if Generation(row, m, 0) in outcome.ensembles and row not in outcome.chosen:
        return {seed: v for (r, k, seed), v in outcome.ensembles.items() if (r, k) == (row, m)}
    return {seed: v.last for (r, k, seed), v in outcome.accuracy.items() if (r, k) == (row, m)}


def _probes(outcome: GenerationsOutcome, name: str, row: str, m: int) -> dict[int, float]:
    """Returns seed -> accuracy of the probes on a data set."""
    return {seed: v for (n, r, k, seed), v in outcome.transfer.items() if (n, r, k) == (name, row, m)}


def _data_sets(outcome: GenerationsOutcome) -> list[str]:
    return list(dict.fromkeys(name for name, *_ in outcome.transfer))


def _probes_table(outcome: GenerationsOutcome) -> str:
    names, rows = _data_sets(outcome), []
    for row, m in dict.fromkeys((row, m) for _, row, m, _ in outcome.transfer):
        cells = [[100 * v for v in _probes(outcome, name, row, m).values()] for name in names]
        rows.append((row, m, *(spread(cell) for cell in cells)))
    return markdown(("chain", "generation", *names), rows)


def _probe_differences_table(outcome: GenerationsOutcome) -> str:
    """Returns differences of the probes between a chain's reported generation, other chains and its patriarch."""
    names, rows = _data_sets(outcome), []
    for chain, m in outcome.chosen.items():
        for label, other, generation in _chains_beside(outcome, chain):
            pairs = [(_probes(outcome, name, chain, m), _probes(outcome, name, other, generation)) for name in names]
            rows.append((f"{chain}, m = {m}", label, *(_gain(*pair) for pair in pairs)))
    return markdown(("generation", "against", *names), rows)

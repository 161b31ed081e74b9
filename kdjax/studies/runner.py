"""How a study trains its runs: jobs in stages, settings chosen by validation, progress, errors that name the run."""

import contextlib
import sys
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from kdjax.errors import DivergedError, RunError, UserError
from kdjax.store import Store
from kdjax.studies.fields import RunConfig
from kdjax.training.loop import train_together
from kdjax.training.plan import completed, resolve

Key = TypeVar("Key", bound=Hashable)
Row = TypeVar("Row", bound=Hashable)


class Job(NamedTuple, Generic[Key]):
    """One run of a study.

    Attributes:
      key: What the run is in the study, such as its row and its seed.
      name: Name of the run in the store.
      config: Config of the run.
    """

    key: Key
    name: str
    config: RunConfig


class FinishedRun(NamedTuple, Generic[Key]):
    """A job and the result of its run.

    Attributes:
      job: The job.
      result: What the run's `result.json` holds.
      splits: Split -> {'size', 'sha256'} of its examples, from the run's manifest.
    """

    job: Job[Key]
    result: Mapping
    splits: Mapping[str, Mapping] = {}

    @property
    def key(self) -> Key:
        """What the run is in the study."""
        return self.job.key

    @property
    def name(self) -> str:
        """Name of the run in the store."""
        return self.job.name

    def score(self, checkpoint: str, split: str, name: str = "accuracy") -> float:
        """Returns a score of the result.

        Args:
          checkpoint: 'last' or 'best'.
          split: 'train', 'validation' or 'test'.
          name: Name of the score.
        """
        return self.result[checkpoint][split][name]


def redrawn_overlap(runs: Sequence[FinishedRun]) -> float:
    """Returns the test examples per training example where the runs' splits redraw the same examples, else 0.

    Args:
      runs: Finished runs; the largest training split counts, since a protocol may leave out a part of the others'. Of
        several data sets, that with the largest overlap counts.
    """
    names = {run.job.config.data.name for run in runs}
    return max((_overlap([run for run in runs if run.job.config.data.name == name]) for name in names), default=0.0)


def _overlap(runs: Sequence[FinishedRun]) -> float:
    tests = {run.splits["test"]["sha256"]: run.splits["test"]["size"] for run in runs if "test" in run.splits}
    sizes = [run.splits["train"]["size"] for run in runs if run.splits.get("train", {}).get("size")]
    return max(tests.values()) / max(sizes) if len(tests) > 1 and sizes else 0.0


class RunCounter:
    """Counts the runs of a study and, if asked to, shows them: a bar on a terminal, elsewhere one line per run.

    The total grows with each stage that a study begins, so a study need not know it in advance.

    Args:
      show: Whether to show progress on stderr.

    Attributes:
      total: Number of runs in the stages that were begun.
      finished: Names of the runs that are finished, in order.
    """

    def __init__(self, show: bool = False):
        self.total, self.finished = 0, []
        self._show, self._bar = show, None

    def __enter__(self) -> "RunCounter":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def begin(self, runs: int) -> None:
        """Adds a stage of so many runs to the total."""
        self.total += runs
        if self._show and sys.stderr.isatty():
            if self._bar is None:
                from tqdm import tqdm

                self._bar = tqdm(unit="run", dynamic_ncols=True)
            self._bar.total = self.total
            self._bar.refresh()

    def finish(self, name: str) -> None:
        """Counts one finished run."""
        self.finished.append(name)
        if self._bar is not None:
            self._bar.set_postfix_str(name)
            self._bar.update()
        elif self._show:
            print(f"[{len(self.finished)}/{self.total}] {name}", file=sys.stderr, flush=True)

    def say(self, line: str) -> None:
        """Shows a line about how the runs are trained."""
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        elif self._show:
            print(line, file=sys.stderr, flush=True)


class Runner:
    """Trains the jobs of a study in one store.

    Args:
      store: Store of the runs; a run that is finished there is not trained again.
      data_dir: Directory of data sets that are not embedded.
      counter: Counter of the runs; by default one that shows nothing.
      choose_devices: Whether each run takes only those of the devices that are worth it; otherwise it takes all.
    """

    def __init__(
        self,
        store: Store,
        data_dir: str = "data",
        counter: RunCounter | None = None,
        choose_devices: bool = False,
    ):
        self.store, self.data_dir, self.choose_devices = store, data_dir, choose_devices
        self.counter = RunCounter() if counter is None else counter

    def run_jobs(self, jobs: Sequence[Job[Key]]) -> list[FinishedRun[Key]]:
        """Trains one stage: jobs none of which needs another one of them.

        Jobs of one name share a run, which is trained and counted once.

        Args:
          jobs: The jobs, in any order.

        Returns:
          The finished runs, in the order of the jobs.

        Raises:
          UserError: A config is wrong, two jobs of one name differ, or a job needs another run of its own stage.
          RunError: A run failed.
          Interrupted: A signal stopped a run after it was saved.
        """
        return self.run_stages([jobs])

    def run_stages(self, stages: Sequence[Sequence[Job[Key]]]) -> list[FinishedRun[Key]]:
        """Trains stages in turn, such as all teachers and then all students.

        Args:
          stages: Stages as `run_jobs` takes them; a job may need runs of earlier stages.

        Returns:
          The finished runs of all stages, in the order of the jobs.

        Raises:
          UserError, RunError, Interrupted: See `run_jobs`.
        """
        _check_names([job for stage in stages for job in stage])
        for stage in stages:
            _check_independent(stage)
        self.counter.begin(len({job.name for stage in stages for job in stage}))
        seen: set[str] = set()
        distinct: list[list[Job]] = []
        for stage in stages:
            new = {job.name: job for job in stage if job.name not in seen}
            distinct.append(list(new.values()))
            seen |= set(new)
        results = self._train_stages(distinct)
        return [self._finished(job, results[job.name]) for stage in stages for job in stage]

    def run_all(self, jobs: Sequence[Job[Key]]) -> list[FinishedRun[Key]]:
        """Trains one stage in which a run whose loss is not finite counts at what it reached.

        Args:
          jobs: As `run_jobs` takes them.

        Returns:
          The runs in the order of the jobs. The result of one that diverged has 'diverged': True, and as 'last' the
          scores of its last epoch that was evaluated; without one, the accuracy of chance.

        Raises:
          UserError, RunError, Interrupted: See `run_jobs`; no RunError is raised for a run that diverged.
        """
        diverged: dict[str, Mapping] = {}
        while True:
            left = [job for job in jobs if job.name not in diverged]
            try:
                results = {run.name: run.result for run in self.run_jobs(left)} if left else {}
            except DivergedError as error:
                diverged |= {name: self._reached(name) for name in error.runs}
                continue
            return [self._finished(job, (results | diverged)[job.name]) for job in jobs]

    def _finished(self, job: Job[Key], result: Mapping) -> FinishedRun[Key]:
        return FinishedRun(job, result, (self.store.find(job.name).manifest or {}).get("splits", {}))

    def _reached(self, name: str) -> dict:
        """Returns what a run that diverged had reached, in the form of a result."""
        run = self.store.find(name)
        scored = [row for row in run.metrics() if "test" in row]
        if scored:
            last = {key: scored[-1][key] for key in ("epoch", "step", "validation", "test") if key in scored[-1]}
        else:
            chance = {"accuracy": 1 / (run.manifest or {})["model"]["num_classes"]}
            last = {"epoch": 0, "step": 0, "validation": chance, "test": chance}
        return {"diverged": True, "last": last}

    def _train_stages(self, stages: Sequence[Sequence[Job]]) -> dict[str, dict]:
        """Trains stages of jobs that all have different names, and returns name -> result."""
        results: dict[str, dict] = {}
        for stage in stages:
            results |= self._train_stage(stage)
        return results

    def _train_stage(self, jobs: Sequence[Job]) -> dict[str, dict]:
        """Trains jobs of different names that do not depend on one another, and returns name -> result."""
        names, finished = [job.name for job in jobs], self.counter.finish
        options = {"names": names, "data_dir": self.data_dir, "show": False, "finished": finished}
        options |= {"say": self.counter.say, "choose_devices": self.choose_devices}
        with located(f"run '{names[0]}'") if len(jobs) == 1 else contextlib.nullcontext():  # of several it names each
            results = train_together([job.config for job in jobs], self.store, **options)
        return dict(zip(names, results, strict=True))

    def check(self, jobs: Sequence[Job]) -> None:
        """Refuses wrong configs, and configs that differ from those of stored runs, before anything is trained.

        Args:
          jobs: The jobs.

        Raises:
          UserError: Names the run and what is wrong with it.
        """
        for job in jobs:
            stored = self.store.run(job.name)
            with located(f"run '{job.name}'"):
                config = resolve(job.config)
                if stored.manifest is not None:
                    stored.begin({"config": config.to_dict()}, completed)  # compares the configs


def _check_names(jobs: Sequence[Job]) -> None:
    """Refuses two jobs of one name with different configs."""
    configs: dict[str, RunConfig] = {}
    for job in jobs:
        first = configs.setdefault(job.name, job.config)
        if first is not job.config and first.to_dict() != job.config.to_dict():
            raise UserError(f"two runs of the study with different configs would be called '{job.name}'; rename one.")


def _check_independent(stage: Sequence[Job]) -> None:
    """Refuses a job whose teacher, or whose initial weights, are trained in the same stage."""
    names = {job.name for job in stage}
    for job in stage:
        teachers = [teacher.get("run") for teacher in job.config.get("teachers", {}).values()]
        for needed in (*teachers, job.config.get("init_from")):
            if needed in names:
                raise UserError(f"run '{job.name}' needs run '{needed}', which must be in an earlier stage.")


class Trial(NamedTuple, Generic[Row]):
    """Key of a job that tries one setting.

    Attributes:
      row: What the setting is chosen for, such as a loss.
      setting: The setting, such as a learning rate.
      seed: Seed of the run.
    """

    row: Row
    setting: float
    seed: int


def choose_settings(
    runner: Runner, trials: Sequence[Job[Trial[Row]]], reported_seeds: Collection[int]
) -> dict[Row, float]:
    """Trains all trials and returns the setting of the best mean validation accuracy for each row.

    The accuracy is that of the best epoch, averaged over the seeds of a setting; of equally good settings the first one
    is chosen. The test split is not used.

    Args:
      runner: Runner that trains the trials.
      trials: One job per row, setting and seed.
      reported_seeds: Seeds of the runs that the study reports.

    Returns:
      row -> setting, in the order of the trials.

    Raises:
      UserError: A seed of a trial is reported, or one of `Runner.run_jobs`.
    """
    shared = sorted({job.key.seed for job in trials} & set(reported_seeds))
    if shared:
        raise UserError(f"seed {shared[0]} would both choose a setting and be reported; lower the number of seeds.")
    accuracies: dict[Row, dict[float, list[float]]] = {}
    for run in runner.run_jobs(trials):
        by_setting = accuracies.setdefault(run.key.row, {})
        by_setting.setdefault(run.key.setting, []).append(run.score("best", "validation"))
    means = {row: {setting: np.mean(found) for setting, found in each.items()} for row, each in accuracies.items()}
    return {row: max(each, key=lambda setting: each[setting]) for row, each in means.items()}


def seeded(config: RunConfig, seed: int, split_seed: int | None = None) -> RunConfig:
    """Returns a copy of a run's config with another seed.

    Args:
      config: Config of a run; it is not changed.
      seed: Seed of initial weights, order and augmentation.
      split_seed: Seed of the data split; None leaves the config's own.

    Raises:
      UserError: The config fixes the order of the examples for all seeds.
    """
    config = RunConfig(config.to_dict())
    if config.data.get("order_seed", -1) >= 0:
        raise UserError(
            "config.data.order_seed must be -1 in the runs of a study: seeds that share their order are one draw."
        )
    config.seed = seed
    if split_seed is not None:
        config.data.split_seed = split_seed
    return config


@contextlib.contextmanager
def located(where: str) -> Iterator[None]:
    """Begins the messages of errors that are raised inside with where in the study they occurred.

    Args:
      where: The place, such as "run 'digits/mlp-ce-s0'"; it is not repeated in a message that names it already.
    """
    try:
        yield
    except (UserError, RunError) as error:
        if where.lower() in str(error).lower():
            raise
        message = f"{where}: {error}"
        raise (
            DivergedError(message, error.runs) if isinstance(error, DivergedError) else type(error)(message)
        ) from error

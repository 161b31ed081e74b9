"""train(config, store): the one loop for every stage. It trains populations; a run is a population of one."""

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from kdjax import own_code
from kdjax.data.protocols import describe
from kdjax.errors import RunError, UserError
from kdjax.interop.output_files import hashes_of_files
from kdjax.run_names import default_run_name
from kdjax.store import Run, Store
from kdjax.store.run import check_scores
from kdjax.training import parallel, processes
from kdjax.training.device_choice import suited_devices
from kdjax.training.manifest import regrouped
from kdjax.training.member import Member
from kdjax.training.plan import Plan, completed, make_plan, manifest_of, resolve
from kdjax.training.population import Population, group_plans, why_apart
from kdjax.training.shared_store import shared
from kdjax.training.signals import StopSignals
from kdjax.training.teacher_logits import cached_logits
from kdjax.training.teachers import LoadedTeachers
from kdjax.training.trainer import Sink, Trainer
from kdjax.types import Config, Device


def train(
    config: Config,
    store: Store,
    *,
    name: str = "",
    data_dir: str = "data",
    devices: Sequence[Device] | None = None,
    show: bool = True,
    sink: Sink | None = None,
    choose_devices: bool = False,
) -> dict:
    """Trains a run, resumes one that was stopped, or returns the result of one that is finished.

    Args:
      config: A whole config (`kdjax.config.defaults` and what an experiment changes).
      store: The store that has the teachers and gets the run.
      name: Name of the run, '' for the default of the config.
      data_dir: Directory of the data sets that are not embedded.
      devices: Devices of this process; all of them by default.
      show: Whether to show progress.
      sink: Called with the run's path and each epoch's row, for a log elsewhere.
      choose_devices: Whether the run takes only those of the devices that are worth it; see `suited_devices`.

    Returns:
      The contents of `result.json`.

    Raises:
      UserError: There is a mistake in the config, the data, the teachers or the store.
      RunError: The loss was not finite; the last good checkpoint is kept.
      Interrupted: SIGINT or SIGTERM came; the run was saved.
    """
    options = {"data_dir": data_dir, "devices": devices, "show": show, "sink": sink, "choose_devices": choose_devices}
    return train_together([config], store, names=[name], **options)[0]


def train_together(
    configs: Sequence[Config],
    store: Store,
    *,
    names: Sequence[str] = (),
    data_dir: str = "data",
    devices: Sequence[Device] | None = None,
    show: bool = True,
    sink: Sink | None = None,
    finished: Callable[[str], None] = lambda name: None,
    say: Callable[[str], None] | None = None,
    choose_devices: bool = False,
) -> list[dict]:
    """Trains runs that do not need one another, in one step where they can share it, and returns their results.

    Runs that can share a step are trained as a population (see `kdjax.training.population`); each is an ordinary run,
    equal to the run trained alone, and can be resumed alone or with others. All others are trained in turn.

    Args:
      configs: Whole configs.
      store: The store that has the teachers and gets the runs.
      names: Name of each run, '' for the default of its config; () for all defaults.
      data_dir: Directory of the data sets that are not embedded.
      devices: Devices of this process; all of them by default.
      show: Whether to show progress.
      sink: Called with the run's path and each epoch's row, for a log elsewhere.
      finished: Called with the name of each run that is finished.
      say: Called with each sentence about which runs share a step; by default they are shown with the progress.
      choose_devices: Whether each run takes only those of the devices that are worth it; see `suited_devices`.

    Returns:
      The contents of `result.json` of each run.

    Raises:
      UserError: There is a mistake in a config, the data, the teachers or the store.
      RunError: A loss was not finite; the other runs of its population are finished, and its last good checkpoint is
        kept.
      Interrupted: SIGINT or SIGTERM came; the runs that were being trained were saved.
    """
    devices = tuple(devices or parallel.local_devices())
    if not processes.is_writer():
        show, sink = False, None
    say = say or (_print if show else lambda line: None)
    kind = {"several": len(configs) > 1, "choose_devices": choose_devices}
    session = _Session(shared(store), data_dir, devices, show, sink, finished, say, **kind)
    jobs, groups = _planned(configs, names, session)
    for group in groups:
        _train_group(group, session)
    return [session.results[job.run.name] for job in jobs]


class Planned(NamedTuple):
    """Runs that do not need one another, before they are trained.

    Attributes:
      results: Name -> result of each run that is finished.
      groups: For each population of those that are not, name -> plan of its members.
    """

    results: dict[str, dict]
    groups: list[dict[str, Plan]]


def plan_together(
    configs: Sequence[Config],
    store: Store,
    *,
    names: Sequence[str],
    data_dir: str = "data",
    choose_devices: bool = False,
    loaded: LoadedTeachers | None = None,
) -> Planned:
    """Returns the populations that `train_together` would train, and trains none.

    Args:
      configs: Whole configs.
      store: The store that has the teachers and the runs.
      names: Name of each run.
      data_dir: Directory of the data sets that are not embedded.
      choose_devices: Whether each run takes only those of the devices that are worth it.
      loaded: Teachers to use in place of the store's; see `load_teachers`.

    Raises:
      UserError: There is a mistake in a config, the data, the teachers or the store.
    """
    devices, kind = tuple(parallel.local_devices()), {"several": len(configs) > 1, "choose_devices": choose_devices}
    quiet = {"show": False, "sink": None, "finished": lambda name: None, "say": lambda line: None}
    session = _Session(store, data_dir, devices, **quiet, **kind, teachers=dict(loaded or {}))
    _, groups = _planned(configs, names, session)
    return Planned(session.results, [{job.run.name: job.plan for job in group if job.plan} for group in groups])


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@dataclasses.dataclass(frozen=True)
class _Session:
    """What all runs of one call share.

    Attributes:
      several: Whether they are several, so that a mistake must say in which of them it is.
      choose_devices: Whether each takes only those of the devices that are worth it.
      teachers: The teachers that were loaded.
      results: Name of each finished run -> its result.
    """

    store: Store
    data_dir: str
    devices: tuple[Device, ...]
    show: bool
    sink: Sink | None
    finished: Callable[[str], None]
    say: Callable[[str], None]
    several: bool
    choose_devices: bool
    teachers: LoadedTeachers = dataclasses.field(default_factory=dict)
    results: dict[str, dict] = dataclasses.field(default_factory=dict)

    def finish(self, name: str, result: dict) -> None:
        """Notes the result of a run."""
        if name not in self.results:
            self.results[name] = result
            self.finished(name)

    @contextlib.contextmanager
    def naming(self, name: str) -> Iterator[None]:
        """Begins a mistake's message with the name of its run, where there are several runs."""
        try:
            yield
        except UserError as error:
            if self.several and f"run '{name}'" not in str(error):
                raise UserError(f"run '{name}': {error}") from error
            raise


class _Job(NamedTuple):
    """A run that was asked for, with its resolved config; its plan is None where it is finished."""

    run: Run
    config: Config
    plan: Plan | None


def _prepare(config: Config, name: str, session: _Session) -> _Job:
    """Checks a config and plans its run, unless the run is finished: then its result is noted."""
    with session.naming(name or default_run_name(config)):
        config = resolve(config)
        run = session.store.run(name or default_run_name(config))
        for label, teacher in config.teachers.items():
            if teacher.run == run.name:
                field = f"config.teachers.{label}.run"
                raise UserError(f"{field}: '{run.name}' is this run; a run cannot be its own teacher.")
        if _is_finished(run, config, session):
            return _Job(run, config, None)
        devices = session.devices[:1] if session.choose_devices and processes.count() == 1 else session.devices
        plan = make_plan(config, session.store, session.data_dir, devices, loaded=session.teachers)
        if session.choose_devices:
            plan = plan._replace(devices=suited_devices(plan, session.devices))
        return _Job(run, config, plan)


def _is_finished(run: Run, config: Config, session: _Session) -> bool:
    """Whether a run is finished, and then notes its result; refuses one that was begun with another config."""
    run.refuse_without_manifest()
    if run.manifest is None:
        return False
    run.begin({"config": config.to_dict()}, completed)  # refuses a changed config before anything is loaded
    result = run.result
    if result is None:
        run.check_checkpoints()
        return False
    found = {"code": own_code.source_hashes(own_code.names_in(config.to_dict()))}
    run.check_content({**found, "teachers": hashes_of_files(config.teachers)})
    check_scores(result, run.path / "result.json")
    if session.show:
        line = f"run '{run.name}' is finished: this is its stored result. To train anew, choose another --run"
        _print(f"{line} or delete {run.path}.")
    session.finish(run.name, result)
    return True


def _planned(configs: Sequence[Config], names: Sequence[str], session: _Session) -> tuple[list[_Job], list[list[_Job]]]:
    """Returns the jobs of all configs, and those that are not finished in groups that can share a step."""
    jobs = [_prepare(config, name, session) for config, name in zip(configs, names or [""] * len(configs), strict=True)]
    _refuse_other_configs_of_one_name(jobs)
    new = list({job.run.name: job for job in jobs if job.plan is not None}.values())
    plans = [job.plan for job in new if job.plan is not None]
    groups = group_plans(plans, [max(job.run.steps(), default=0) for job in new])
    if reason := why_apart(plans, groups):
        session.say(reason)
    return jobs, [[new[i] for i in group] for group in groups]


def _refuse_other_configs_of_one_name(jobs: Sequence[_Job]) -> None:
    first: dict[str, _Job] = {}
    for job in jobs:
        if first.setdefault(job.run.name, job).config.to_dict() != job.config.to_dict():
            raise UserError(f"two of the runs have different configs and one name, '{job.run.name}'; rename one.")


def _train_group(jobs: Sequence[_Job], session: _Session) -> None:
    """Trains runs that can share a step. All are restored first: a mistake in one is found before any is trained."""
    with contextlib.ExitStack() as stack:
        for job in jobs:
            stack.enter_context(job.run.lock())
        # Another process may have finished some since they were planned.
        members = [Member(job.plan, job.run) for job in jobs if not _is_finished(job.run, job.config, session)]
        parts: dict[tuple[int, int], list] = {}  # more than one only if the newest checkpoint of a run is damaged
        for member in members:
            with session.naming(member.run.name):
                carry = member.restore()
            parts.setdefault((member.progress.epoch, member.progress.step_in_epoch), []).append((member, carry))
        for part in parts.values():
            _train_population(*map(list, zip(*part, strict=True)), session)


def _train_population(members: list[Member], carries: list, session: _Session) -> None:
    """Trains equally far members in one step, from what they carry to their results."""
    with contextlib.ExitStack() as stack:
        for member in members:
            stack.enter_context(_discarded_if_empty(member.run))
        population = _population_of(members, session)
        for member in members:
            _begin(member, members, population.layout)
            if session.show:
                for line in (*member.plan.config.notes, *map(describe, member.plan.dataset.protocols)):
                    _print(f"{member.run.name} {line}")
        if len(members) > 1:
            session.say(population.describe())
        own_name = session.naming(members[0].run.name) if len(members) == 1 else contextlib.nullcontext()
        with own_name, StopSignals() as stop:
            trainer = Trainer(population, members, carries, stop, session.show, session.sink)
            for name, result in trainer.fit().items():
                session.finish(name, result)
            trainer.raise_failures()
            if stop.signum:  # it came in the last epoch; the process must not begin another run
                stop.leave(f"{_listed(members)} finished; repeat the command to go on from there.")


def _population_of(members: Sequence[Member], session: _Session) -> Population:
    """Returns the population of members; a mistake in the teachers of one of them names its run."""
    try:
        return Population([member.plan for member in members])
    except UserError:
        for member in members:
            with session.naming(member.run.name):
                cached_logits(member.plan)
        raise


def _begin(member: Member, members: Sequence[Member], layout: str) -> None:
    """Writes a run's manifest, or adds to it that the run goes on in another population."""
    names, before = [other.run.name for other in members], member.run.manifest
    population = {"layout": layout, "members": names} if len(names) > 1 else None
    if before is None:
        manifest = manifest_of(member.plan)
        member.run.begin(manifest if population is None else {**manifest, "population": population})
    elif before.get("population") != population:
        member.run.amend(regrouped(before, population, member.step))


def _listed(members: Sequence[Member]) -> str:
    """Returns the beginning of a sentence about the runs of some members."""
    first = f"run '{members[0].run.name}'"
    return f"{first} is" if len(members) == 1 else f"{len(members)} runs, {first} among them, are"


@contextlib.contextmanager
def _discarded_if_empty(run: Run) -> Iterator[None]:
    """Deletes the manifest if the run fails before its first checkpoint; a corrected config can then use its name."""
    try:
        yield
    except RunError:
        raise
    except Exception:
        run.discard_if_empty()
        raise

"""Trains the runs of a study as jobs of their own, by the library submitit: on this host, or under Slurm.

A job trains one population, the runs that share a compiled step. What a job has done is in the store alone, so that a
command which is repeated skips the runs that are finished and takes up the others.
"""

import collections
import contextlib
import dataclasses
import os
import pathlib
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from kdjax import own_code, signals
from kdjax.errors import DivergedError, Interrupted, RunError, UserError
from kdjax.store import Store
from kdjax.store.files import disk_errors, make_folder, read_json, write_json
from kdjax.studies.fields import RunConfig
from kdjax.studies.runner import Job, Runner
from kdjax.training import parallel
from kdjax.training.loop import Planned, plan_together, train_together
from kdjax.training.plan import Plan, resolve, stand_in
from kdjax.training.teachers import LoadedTeachers, teacher_key

FOLDER = ".jobs"  # in the store: the logs of jobs, and what submitit keeps of them
RECORD = "jobs.json"  # in the folder of a submission to Slurm: the runs of each job
JOB_ID = re.compile(r"\d+(_\d+)?")
UNENDING = 60 * 24 * 3650  # minutes; submitit's jobs of this host end after two if nothing is said
MINUTES = 240  # of a job under Slurm, if nothing is said; one that takes longer is queued again and goes on
MOST_TIMEOUTS = 1000  # times that a job is queued again
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "UNKNOWN")
LOCAL_POLL, SLURM_POLL = 0.2, 5.0  # seconds between two looks at the jobs


@dataclasses.dataclass(frozen=True)
class Population:
    """What one job does, as it is sent to another process.

    Attributes:
      configs: Name of each run -> its config, as plain mappings.
      store: Absolute path of the store.
      trust: Code that is imported if the store names it.
      named: Code that the study's config names, which its runs may therefore name.
      data_dir: Directory of data sets that are not embedded.
      choose_devices: Whether each run takes only those of the devices that are worth it.
    """

    configs: Mapping[str, Mapping]
    store: str
    trust: tuple[str, ...]
    named: tuple[str, ...]
    data_dir: str
    choose_devices: bool

    def __call__(self) -> dict[str, str]:
        """Trains the runs and returns name -> what happened for each whose loss was not finite."""
        own_code.note(self.named)
        left, diverged = {name: RunConfig(config) for name, config in self.configs.items()}, {}
        options = {"data_dir": self.data_dir, "choose_devices": self.choose_devices}
        with signals.watching():
            while left:
                try:
                    train_together(list(left.values()), Store(self.store, self.trust), names=list(left), **options)
                    break
                except DivergedError as error:  # the others of the job go on
                    diverged |= dict.fromkeys(error.runs, str(error))
                    left = {name: config for name, config in left.items() if name not in diverged}
        return diverged

    def checkpoint(self) -> Any:
        """Returns what submitit queues again when the job's time is over: the same, which resumes."""
        return _submitit().helpers.DelayedSubmission(self)


class Submitted(NamedTuple):
    """A job that was submitted.

    Attributes:
      job: submitit's view of it.
      names: Names of its runs.
      gpu: Number of its GPU on this host; None without one, and under Slurm.
    """

    job: Any
    names: tuple[str, ...]
    gpu: int | None = None


class JobRunner(Runner):
    """A runner whose runs are trained by jobs of other processes.

    Args:
      *args, **options: See `Runner`; all jobs must see the folder of the store.
      workers: Number of jobs that run at the same time, at most.

    Raises:
      UserError: submitit is not installed.
    """

    def __init__(self, *args: Any, workers: int = 1, **options: Any):
        super().__init__(*args, **options)
        self.workers = workers
        self._diverged: dict[str, str] = {}
        self._failed: dict[str, str] = {}
        _submitit()

    def _plan(self, jobs: Sequence[Job], loaded: LoadedTeachers | None = None) -> Planned:
        """Returns the populations of a stage, and counts the runs that are finished."""
        names, configs = [job.name for job in jobs], [job.config for job in jobs]
        options = {"data_dir": self.data_dir, "choose_devices": self.choose_devices, "loaded": loaded}
        planned = plan_together(configs, self.store, names=names, **options)
        for name in planned.results:
            self.counter.finish(name)
        return planned

    def _population(self, jobs: Sequence[Job], names: Sequence[str]) -> Population:
        configs = {job.name: job.config.to_dict() for job in jobs if job.name in names}
        where = str(self.store.root.absolute())
        data_dir = str(pathlib.Path(self.data_dir).absolute())
        return Population(
            configs, where, tuple(self.store.trust.names), own_code.noted(), data_dir, self.choose_devices
        )

    def _folder(self) -> pathlib.Path:
        """Makes a new folder for jobs: what submitit reads from it was written by the jobs of this command."""
        above = self.store.root.absolute() / FOLDER
        with disk_errors(above):
            make_folder(above)
            return pathlib.Path(tempfile.mkdtemp(prefix=time.strftime("%Y%m%d-%H%M%S-"), dir=above))

    def _note(self, done: Submitted) -> None:
        """Notes what came of the runs of a job that has ended."""
        left = [name for name in done.names if self.store.run(name).result is None]
        for name in done.names:
            if name not in left:
                self.counter.finish(name)
        if not left:
            return
        if not done.job.paths.result_pickle.exists():  # submitit would wait for it
            self._failed |= dict.fromkeys(left, f"its job ended without a result ({done.job.state})")
        elif (error := done.job.exception()) is not None:
            self._failed |= dict.fromkeys(left, _reason(error))
        else:
            self._diverged |= done.job.result()

    def _raise_failures(self, folder: pathlib.Path, runs: int) -> None:
        """Raises what went wrong in the jobs of a folder, and deletes the folder if nothing did."""
        diverged, failed = self._diverged, self._failed
        self._diverged, self._failed = {}, {}
        if failed:
            by_reason = {why: [name for name in failed if failed[name] == why] for why in failed.values()}
            listed = "; ".join(f"{_listed(names)}: {why}" for why, names in by_reason.items())
            raise RunError(
                f"{len(failed)} of {runs} runs are not finished: {listed}. Their logs are in {folder}; repeat the "
                "command to take them up."
            )
        shutil.rmtree(folder, ignore_errors=True)
        if diverged:
            raise DivergedError(" ".join(dict.fromkeys(diverged.values())), diverged)

    def _results(self, stages: Sequence[Sequence[Job]]) -> dict[str, dict]:
        found = {job.name: self.store.run(job.name).result for stage in stages for job in stage}
        return {name: result for name, result in found.items() if result is not None}


class LocalRunner(JobRunner):
    """Jobs are processes of this host, each with a GPU if there are any. A stage ends before the next one begins.

    Args:
      **options: See `JobRunner`.

    Raises:
      UserError: submitit is not installed, or this process holds the host's TPU.
    """

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        if parallel.local_devices()[0].platform == "tpu":
            raise UserError("--executor=local: several processes cannot share the TPU of a host; leave the flag out.")

    def _train_stages(self, stages: Sequence[Sequence[Job]]) -> dict[str, dict]:
        for stage in stages:
            planned = self._plan(stage)
            if planned.groups:
                folder = self._folder()
                self._train([self._population(stage, tuple(group)) for group in planned.groups], folder)
                self._raise_failures(folder, len(stage))
        return self._results(stages)

    def _train(self, populations: Sequence[Population], folder: pathlib.Path) -> None:
        executor = _submitit().LocalExecutor(folder)
        waiting, running = collections.deque(populations), []
        self.counter.say(f"{len(waiting)} jobs, at most {self.workers} at a time; their logs are in {folder}")
        with _Stop() as stop, _ended(running):
            while waiting or running:
                while waiting and len(running) < self.workers:
                    running.append(_start(executor, waiting.popleft(), running))
                stop.wait(LOCAL_POLL)
                for done in [one for one in running if one.job.done()]:
                    running.remove(done)
                    self._note(done)
                if stop.signum:
                    raise Interrupted(stop.signum, "the study was stopped; repeat the command to go on from there.")


def _start(executor: Any, population: Population, running: Sequence[Submitted]) -> Submitted:
    """Starts a job on the GPU that the fewest jobs use."""
    used = collections.Counter(one.gpu for one in running)
    gpu = min(_gpus(), key=lambda number: used[number], default=None)
    visible = {} if gpu is None else {"gpus_per_node": 1, "visible_gpus": (gpu,)}
    executor.update_parameters(timeout_min=UNENDING, **visible)
    # A terminal sends SIGINT to all; the jobs get SIGTERM from this process, and have time to save.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return Submitted(executor.submit(population), tuple(population.configs), gpu)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _gpus() -> list[int]:
    """Returns the numbers of the GPUs that this process may use; jax is not asked, since it would take their memory."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [int(number) for number in named.split(",") if number.strip().isdecimal()]
    found = (re.fullmatch(r"nvidia(\d+)", path.name) for path in pathlib.Path("/dev").glob("nvidia[0-9]*"))
    return sorted(int(match[1]) for match in found if match)


@contextlib.contextmanager
def _ended(running: list[Submitted]) -> Iterator[None]:
    """Ends the jobs that still run when the block is left: they get SIGTERM, on which they save."""
    try:
        yield
    finally:
        left = [one.job for one in running if not one.job.done()]
        for job in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(job.job_id), signal.SIGTERM)
        while not all(job.done() for job in left):
            time.sleep(LOCAL_POLL)


class SlurmRunner(JobRunner):
    """Jobs are Slurm's: an array for each stage, which waits until that of the stage before has ended well.

    Args:
      parameters: Parameters of submitit's SlurmExecutor, such as partition, gpus_per_node and time (minutes).
      **options: See `JobRunner`.

    Raises:
      UserError: submitit is not installed, this host has no Slurm, or there is no such parameter.
    """

    def __init__(self, *args: Any, parameters: Mapping[str, str | int] | None = None, **options: Any):
        super().__init__(*args, **options)
        self._parameters = {"time": MINUTES, **(parameters or {})}
        self._executor("nowhere")

    def _train_stages(self, stages: Sequence[Sequence[Job]]) -> dict[str, dict]:
        self._wait_for_earlier({job.name for stage in stages for job in stage})
        folder, submitted, after = self._folder(), [], []
        plans: dict[str, Plan | None] = {}
        for stage in stages:
            groups = self._groups(stage, plans)
            if groups:
                after = self._submit([self._population(stage, group) for group in groups], folder, after)
                submitted += after
                record = [{"id": one.job.job_id, "runs": one.names} for one in submitted]
                write_json(folder / RECORD, {"jobs": record})
        if submitted:
            ids = ", ".join(dict.fromkeys(one.job.job_id.partition("_")[0] for one in submitted))
            what = f"{len(submitted)} jobs, at most {self.workers} at a time"
            self.counter.say(f"{what}, are submitted to Slurm ({ids}); their logs are in {folder}")
        for done in self._ends(submitted):
            self._note(done)
        self._raise_failures(folder, sum(map(len, stages)))
        return self._results(stages)

    def _groups(self, stage: Sequence[Job], plans: dict[str, Plan | None]) -> list[tuple[str, ...]]:
        """Returns the names of each population of a stage whose teachers need not be trained yet.

        Args:
          stage: The jobs.
          plans: Plans of the runs of earlier stages that are not finished, None where one cannot be planned yet; the
            stage's own are added.
        """
        needs = {job.name: _needed(job.config) & set(plans) for job in stage}
        blind = [name for name, needed in needs.items() if any(plans[other] is None for other in needed)]
        blind += [job.name for job in stage if job.config.get("init_from") in plans and job.name not in blind]
        seen = [job for job in stage if job.name not in blind]
        planned = self._plan(seen, _stand_ins(seen, plans)) if seen else Planned({}, [])
        groups = [tuple(group) for group in planned.groups]
        for group in planned.groups:
            plans |= group
        plans |= dict.fromkeys(blind)
        return groups + [(name,) for name in blind]

    def _executor(self, folder: pathlib.Path | str, after: Sequence[Submitted] = ()) -> Any:
        more = {"kill-on-invalid-dep": "yes"}  # otherwise a job whose teacher failed waits for ever
        chosen = {"job_name": "kdjax", "array_parallelism": self.workers, "additional_parameters": more}
        if after:
            ids = dict.fromkeys(one.job.job_id.partition("_")[0] for one in after)
            chosen["dependency"] = "afterok:" + ":".join(ids)
        if self.choose_devices:  # the cores of this host say nothing about those of the jobs' hosts
            chosen["setup"] = ["unset JAX_NUM_CPU_DEVICES NPROC"]
        try:
            executor = _submitit().SlurmExecutor(folder, max_num_timeout=MOST_TIMEOUTS)
            executor.update_parameters(**{**chosen, **self._parameters})
        except RuntimeError as error:
            raise UserError("--executor=slurm: there is no 'srun' on this host; log in to one of Slurm's.") from error
        except (TypeError, ValueError) as error:
            raise UserError(f"--slurm: {' '.join(str(error).split())}") from error
        return executor

    def _submit(
        self, populations: Sequence[Population], folder: pathlib.Path, after: Sequence[Submitted]
    ) -> list[Submitted]:
        """Submits an array of jobs that begin when the earlier ones have ended well."""
        try:
            jobs = self._executor(folder, after).submit_array(populations)
        except _submitit().core.utils.FailedJobError as error:
            raise RunError(f"sbatch refused the jobs: {' '.join(str(error).split())}") from error
        return [Submitted(job, tuple(one.configs)) for job, one in zip(jobs, populations, strict=True)]

    def _wait_for_earlier(self, names: set[str]) -> None:
        """Waits for the jobs of an earlier command that train some of the runs, instead of submitting them twice."""
        found = []
        for path in sorted((self.store.root / FOLDER).glob(f"*/{RECORD}")):
            for entry in (read_json(path) or {}).get("jobs", ()):
                job_id, runs = str(entry["id"]), tuple(map(str, entry["runs"]))
                if not JOB_ID.fullmatch(job_id) or not names & set(runs) or self._all_finished(runs):
                    continue
                job = _submitit().SlurmJob(path.parent, job_id)
                state = (job.get_info(mode="force").get("State") or "UNKNOWN").split()[0]
                if not state.startswith(OVER):
                    found.append(Submitted(job, runs))
        if found:
            self.counter.say(f"waiting for {len(found)} jobs of an earlier command")
        for _ in self._ends(found):
            pass

    def _all_finished(self, names: Sequence[str]) -> bool:
        return all(self.store.run(name).result is not None for name in names)

    def _ends(self, submitted: Sequence[Submitted]) -> Iterator[Submitted]:
        """Yields the jobs as they end."""
        left = list(submitted)
        with _Stop() as stop:
            while left:
                for done in [one for one in left if one.job.done()]:
                    left.remove(done)
                    yield done
                if stop.signum:
                    ids = " ".join(dict.fromkeys(one.job.job_id.partition("_")[0] for one in left))
                    line = f"{len(left)} jobs go on; repeat the command to wait for them, or end them: scancel {ids}"
                    raise Interrupted(stop.signum, line)
                if left:
                    stop.wait(SLURM_POLL)


def _needed(config: RunConfig) -> set[str]:
    """Returns the names of the runs that a run reads."""
    return {teacher.get("run") for teacher in config.get("teachers", {}).values()} | {config.get("init_from")}


def _stand_ins(jobs: Sequence[Job], plans: Mapping[str, Plan | None]) -> LoadedTeachers:
    """Returns what takes the place of teachers that are not trained yet while their students are planned."""
    found: LoadedTeachers = {}
    for job in jobs:
        for fields in resolve(job.config).teachers.values():
            plan = plans.get(fields["run"])
            if plan is not None:
                key = teacher_key(fields)
                found[key] = found.get(key) or stand_in(plan, fields["output"])
    return found


class _Stop:
    """Context in which SIGINT and SIGTERM only set `signum`, so that jobs can be ended or named first."""

    def __init__(self):
        self.signum = 0
        self.unsaved = True

    def wait(self, seconds: float) -> None:
        """Waits, but no longer than until a signal comes."""
        until = time.monotonic() + seconds
        while not self.signum and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, LOCAL_POLL))

    def __enter__(self) -> "_Stop":
        if (watch := signals.watch()) is not None:
            watch.saver = self
        return self

    def __exit__(self, *_: object) -> None:
        if (watch := signals.watch()) is not None:
            watch.saver = None


def _submitit() -> Any:
    try:
        import submitit
        import submitit.helpers
    except ImportError as error:
        raise UserError("--executor needs submitit: pip install 'kdjax[slurm]'.") from error
    return submitit


def _reason(error: Exception) -> str:
    """Returns the line of an error of a job that says what happened: the last one of its traceback."""
    rule = "-" * 22
    trace = str(error).split(rule)[1] if rule in str(error) else str(error)
    line = (trace.strip().splitlines() or ["no reason is known"])[-1]
    return re.sub(r"^[\w.]*\.(UserError|RunError|Interrupted): ", "", line).rstrip(".")


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:5])
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"run {shown}" if len(names) == 1 else f"runs {shown}{more}"

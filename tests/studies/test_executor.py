"""Studies as jobs: the same results, failures that are listed and taken up again, and what Slurm is told."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import pytest

from configs import ce_teacher, kd_student
from kdjax.errors import DivergedError, RunError, UserError
from kdjax.store import Store
from kdjax.studies import executor
from kdjax.studies.executor import LocalRunner, SlurmRunner
from kdjax.studies.fields import RunConfig
from kdjax.studies.runner import Job, RunCounter, Runner, seeded
from kdjax.types import ModelOutput

ROOT = pathlib.Path(__file__).parents[2]
SBATCH = """#!/bin/sh
cp "$1" "{folder}/script-$(ls {folder} | grep -c script)"
echo "Submitted batch job $(( 16 + $(ls {folder} | grep -c script) ))"
"""
# What Slurm does, on one host: the tasks of an array run in turn, after the arrays before and if these ended well.
RUNS = """#!/usr/bin/env python3
import os, pathlib, re, subprocess, sys
script, folder = sys.argv[1], pathlib.Path("{folder}")
text = pathlib.Path(script).read_text()
number = 17 + len(list(folder.glob("script-*")))
(folder / f"script-{{number}}").write_text(text)
print(f"Submitted batch job {{number}}", flush=True)
if os.fork():
    sys.exit()
os.setsid()
log = open(folder / "log", "a")
for stream in (1, 2):
    os.dup2(log.fileno(), stream)
import fcntl
lock = open(folder / "turn", "a"); fcntl.flock(lock, fcntl.LOCK_EX)
needs = re.findall(r"--dependency=afterok:([\\d:]+)", text)
if any((folder / f"failed-{{one}}").exists() for found in needs for one in found.split(":")):
    (folder / f"failed-{{number}}").touch(); sys.exit()
array = re.search(r"--array=0-(\\d+)", text)
for task in range(int(array[1]) + 1) if array else [None]:
    env = dict(os.environ, SLURM_JOB_ID=str(number))
    if task is not None:
        env |= {{"SLURM_ARRAY_JOB_ID": str(number), "SLURM_ARRAY_TASK_ID": str(task)}}
    if subprocess.run(["bash", script], env=env).returncode:
        (folder / f"failed-{{number}}").touch()
"""
SRUN = """#!/bin/sh
while [ "${1#-}" != "$1" ]; do case "$1" in --output | --error) shift 2 ;; *) shift ;; esac; done
exec "$@"
"""
SACCT = """#!/bin/sh
echo 'JobID|State|NodeList'
for failed in {folder}/failed-*; do
  [ -e "$failed" ] || continue
  echo "${{failed##*-}}|CANCELLED by 0|"; echo "${{failed##*-}}_[0-9]|CANCELLED by 0|"
done
"""


class Linear(nn.Module):
    """A network of the user's own."""

    num_classes: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x, train=False):
        return ModelOutput(nn.Dense(self.num_classes)(x.reshape(len(x), -1)))


def small(seed: int = 0, rate: float = 0.05) -> RunConfig:
    config = seeded(ce_teacher.get_config("smoke"), seed)
    config.epochs, config.optimizer.learning_rate = 1, rate
    return config


def student(teacher: str, **changed) -> RunConfig:
    config = RunConfig(kd_student.get_config("smoke").to_dict())
    config.epochs = 1
    config.teachers = {"a": {"run": teacher}}
    config.update(changed)
    return config


def stages() -> list[list[Job]]:
    teachers = [Job(f"t{seed}", f"gaussian/t{seed}", small(seed)) for seed in (0, 1)]
    students = [Job(f"s{seed}", f"gaussian/s{seed}", student(f"gaussian/t{seed}", seed=seed)) for seed in (0, 1)]
    return [teachers, students]


def numbers(runs) -> list:
    """Returns what a run's result says, without the time that it took."""
    return [{name: value for name, value in run.result.items() if name != "seconds"} for run in runs]


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Puts a Slurm on the PATH that only keeps the scripts of the jobs; returns the folder of the scripts."""

    def install(sbatch: str = SBATCH) -> pathlib.Path:
        commands, kept = tmp_path / "bin", tmp_path / "slurm"
        commands.mkdir()
        kept.mkdir()
        for name, text in {
            "sbatch": sbatch.format(folder=kept),
            "srun": SRUN,
            "sacct": SACCT.format(folder=kept),
        }.items():
            (commands / name).write_text(text)
            (commands / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
        return kept

    return install


class Inline:
    """Stands for submitit's LocalExecutor: the jobs run in this process, as soon as they are submitted."""

    started: list[tuple[str, ...]] = []

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)

    def update_parameters(self, **parameters) -> None:
        assert parameters["timeout_min"] > 1e6

    def submit(self, population):
        type(self).started.append(tuple(population.configs))
        pickle, error, found = self.folder / f"{len(self.started)}.pkl", None, {}
        try:
            found = population()
        except (UserError, RunError) as caught:
            error = caught
        pickle.touch()
        paths = SimpleNamespace(result_pickle=pickle)
        return SimpleNamespace(
            job_id="0", paths=paths, done=lambda: True, exception=lambda: error, result=lambda: found, state="FINISHED"
        )


@pytest.fixture
def inline(monkeypatch):
    monkeypatch.setattr(executor._submitit(), "LocalExecutor", Inline)
    monkeypatch.setattr(executor, "LOCAL_POLL", 0.0)
    monkeypatch.setattr(Inline, "started", [])
    return Inline


def test_jobs_make_the_runs_that_the_study_makes_without_them(tmp_path, inline):
    """Each job is a population; what is finished is not trained again."""
    alone = Runner(Store(tmp_path / "alone"), "").run_stages(stages())
    counter = RunCounter()
    runner = LocalRunner(Store(tmp_path / "jobs"), "", counter, workers=2)
    runs = runner.run_stages(stages())
    assert numbers(runs) == numbers(alone) and [run.key for run in runs] == ["t0", "t1", "s0", "s1"]
    assert counter.total == 4 and sorted(counter.finished) == sorted(run.name for run in runs)
    assert inline.started == [("gaussian/t0", "gaussian/t1"), ("gaussian/s0", "gaussian/s1")]
    assert not list((tmp_path / "jobs" / executor.FOLDER).iterdir())  # nothing failed, so that no log is kept
    assert numbers(runner.run_stages(stages())) == numbers(alone) and len(inline.started) == 2


def test_a_run_that_fails_is_listed_and_taken_up_by_the_same_command(tmp_path, inline):
    """The others of its stage are finished. The next stage needs it and does not begin."""
    found = stages()
    found[0][1].config.batch_size = 48  # another population
    runner = LocalRunner(Store(tmp_path), "", workers=1)
    with Store(tmp_path).run("gaussian/t1").lock():
        with pytest.raises(
            RunError, match=r"1 of 2 runs are not finished: run 'gaussian/t1': .*locked.*repeat"
        ) as error:
            runner.run_stages(found)
    folder = pathlib.Path(re.search(r"logs are in (\S+);", str(error.value))[1])
    assert folder.is_dir() and Store(tmp_path).run("gaussian/t0").result and len(inline.started) == 2
    runs = runner.run_stages(found)
    assert all(run.result for run in runs) and inline.started[2:][0] == ("gaussian/t1",)


def test_runs_that_diverge_do_not_stop_the_jobs(tmp_path, inline):
    jobs = [Job("a", "a", small()), Job("b", "b", small(1, 1e30)), Job("c", "c", small(2))]
    jobs[2].config.batch_size = 48
    runner = LocalRunner(Store(tmp_path), "", workers=1)
    found = {run.key: run.result for run in runner.run_all(jobs)}
    assert found["b"]["diverged"] and "diverged" not in {**found["a"], **found["c"]}
    with pytest.raises(DivergedError, match="run 'b'") as error:
        runner.run_jobs(jobs)
    assert error.value.runs == ("b",)


def test_jobs_of_a_host_take_turns_at_its_gpus(monkeypatch):
    """No GPU is asked: the numbers stand in CUDA_VISIBLE_DEVICES, which submitit sets for each job."""
    given, running = [], []
    update = lambda timeout_min, **visible: given.append(visible)  # noqa: E731
    stand_in = SimpleNamespace(update_parameters=update, submit=lambda population: None)
    population = executor.Population({"a": {}}, "", (), (), "", False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    for _ in range(3):
        running.append(executor._start(stand_in, population, running))
    running.pop(0)
    running.append(executor._start(stand_in, population, running))
    assert [one["visible_gpus"] for one in given] == [(2,), (5,), (2,), (2,)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert executor._start(stand_in, population, running).gpu is None and given[-1] == {}


def test_slurm_gets_an_array_for_each_stage_that_waits_for_the_one_before(tmp_path, slurm, monkeypatch):
    """The students are planned although their teachers are not trained. The same command finds the jobs again."""
    kept = slurm()
    found = stages()
    found[0][1].config.batch_size = 48
    found[1][1].config.batch_size = 48
    found[1].append(Job("i", "gaussian/i", small(5)))
    found[1][2].config.init_from = "gaussian/t0"
    runner = SlurmRunner(Store(tmp_path / "runs"), "", workers=2, parameters={"partition": "gpu", "gpus_per_node": 1})

    class Stopped(Exception):
        pass

    def stop(self, submitted):
        if submitted:
            raise Stopped([one.names for one in submitted])
        return iter(())

    monkeypatch.setattr(SlurmRunner, "_ends", stop)
    with pytest.raises(Stopped) as stopped:
        runner.run_stages(found)
    assert stopped.value.args[0] == [(f"gaussian/{name}",) for name in ("t0", "t1", "s0", "s1", "i")]
    first, second = [(kept / f"script-{i}").read_text() for i in (0, 1)]
    for script, jobs in ((first, 2), (second, 3)):
        for flag in (
            f"array=0-{jobs - 1}%2",
            "partition=gpu",
            "gpus-per-node=1",
            "time=240",
            "kill-on-invalid-dep=yes",
        ):
            assert f"#SBATCH --{flag}\n" in script
    assert "--dependency" not in first and "#SBATCH --dependency=afterok:17\n" in second
    (record,) = (tmp_path / "runs" / executor.FOLDER).glob(f"*/{executor.RECORD}")
    jobs = json.loads(record.read_text())["jobs"]
    assert [job["id"] for job in jobs] == ["17_0", "17_1", "18_0", "18_1", "18_2"]
    (tmp_path / "bin" / "sacct").write_text("#!/bin/sh\necho 'JobID|State|NodeList'\necho '17_0|RUNNING|'\n")
    with pytest.raises(Stopped) as stopped:
        runner.run_stages(found)
    assert stopped.value.args[0] == [("gaussian/t0",)] and len(list(kept.glob("script-*"))) == 2


def test_what_slurm_does_not_know_or_is_not_there_is_told(tmp_path, slurm):
    with pytest.raises(UserError, match="there is no 'srun' on this host"):
        SlurmRunner(Store(tmp_path / "runs"))
    slurm()
    with pytest.raises(UserError, match="--slurm: Unavailable parameter.*gpu_count"):
        SlurmRunner(Store(tmp_path / "runs"), parameters={"gpu_count": 1})
    assert not (tmp_path / "runs").exists()


def test_both_doors_of_studies_have_the_same_flags():
    doors = [
        (ROOT / "kdjax" / f"{name}.py").read_text().split('"""', 2)[2] for name in ("run_study", "train_generations")
    ]
    assert doors[0] == doors[1] and "cli.define_executor_flags()" in doors[0]


def run_study(folder: pathlib.Path, *flags: str, **variables: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "kdjax.run_study", f"--config={ROOT}/configs/studies/quickstart.py:smoke"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", **variables}
    return subprocess.Popen([*command, f"--store={folder}", *flags], env=env, text=True, stderr=subprocess.PIPE)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["local", "slurm"])
def test_a_study_of_jobs_has_the_report_of_the_study_without_them(tmp_path, slurm, kind):
    """Real processes; Slurm's commands are scripts that run the jobs on this host."""
    slurm(RUNS)
    for name, flags in {"alone": (), "jobs": (f"--executor={kind}", "--workers=2")}.items():
        process = run_study(tmp_path / name, *flags)
        assert process.wait(900) == 0, process.stderr.read()
    alone, jobs = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("alone", "jobs")]
    assert jobs == alone
    assert (tmp_path / "jobs" / "report.md").read_text() == (tmp_path / "alone" / "report.md").read_text()


@pytest.mark.slow
def test_students_of_a_failed_teacher_are_cancelled_and_taken_up(tmp_path, slurm, monkeypatch):
    """The jobs import what the config of another run names, as the study's process does."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    slurm(RUNS)
    found = stages()
    found[0][0].config.model.name, found[0][0].config.model.args = "tests.studies.test_executor:Linear", {}
    found[0][1].config.batch_size = 48
    runner = SlurmRunner(Store(tmp_path / "runs"), "", workers=2)
    with Store(tmp_path / "runs").run("gaussian/t1").lock(), pytest.raises(RunError) as error:
        runner.run_stages(found)
    text = str(error.value)
    assert "3 of 4 runs are not finished: run 'gaussian/t1': Run 'gaussian/t1' is locked" in text
    assert "runs 'gaussian/s0', 'gaussian/s1': its job ended without a result (CANCELLED by 0)" in text
    (tmp_path / "slurm" / "failed-17").unlink()
    (tmp_path / "slurm" / "failed-18").unlink()
    assert all(run.result for run in runner.run_stages(found))


@pytest.mark.slow
def test_a_stopped_study_leaves_no_process_behind_and_goes_on(tmp_path):
    process = run_study(tmp_path / "runs", "--executor=local", "--workers=2")
    deadline = time.monotonic() + 300
    while not list((tmp_path / "runs").glob("**/manifest.json")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143 and "repeat the command to go on" in process.stderr.read()
    assert not any(Store(tmp_path / "runs").run(name).is_locked for name in Store(tmp_path / "runs").runs())
    again = run_study(tmp_path / "runs", "--executor=local", "--workers=2")
    assert again.wait(900) == 0, again.stderr.read()

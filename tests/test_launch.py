"""launch/tpu_pod.sh and launch/slurm.sh: the commands that they would run, and one line for what is wrong."""

import pathlib
import shlex
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SLICE = ("--name=pod", "--zone=us-central2-b")
COMMAND = ("--", ".venv/bin/python", "-m", "kdjax.train_teacher", "--config=configs/mse_teacher.py:cifar100,a b")


def launched(script: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([ROOT / "launch" / script, *arguments], capture_output=True, text=True, timeout=60)


def commands(*arguments: str) -> list[list[str]]:
    done = launched("tpu_pod.sh", "--dry_run", *arguments)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


def test_a_slice_is_made_filled_used_and_its_store_fetched():
    create, pack, copy, install, run, fetch = commands(
        *SLICE, "--type=v4-32", "--version=v2", "--spot", "all", *COMMAND
    )
    assert create[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "create", "pod"] and "--spot" in create
    assert {"--accelerator-type=v4-32", "--version=v2", "--zone=us-central2-b"} <= set(create)
    assert pack[0] == "tar" and {"--exclude=./.git", "--exclude=./runs"} <= set(pack)
    for each in (copy, install, run):
        assert "--worker=all" in each
    assert "--constraint constraints.txt" in install[-1] and "launch/setup.sh" in install[-1]
    inner = shlex.split(run[-1].removeprefix("--command="))
    assert inner == ["cd", "kdjax", "&&", *COMMAND[1:]]  # the command reaches the hosts word for word
    assert fetch[-1] == "--worker=0" and "pod:kdjax/runs" in fetch


def test_slices_from_the_queue_are_made_and_deleted_there():
    (create,) = commands(*SLICE, "--type=v4-32", "--version=v2", "--queued", "--project=p", "create")
    (delete,) = commands(*SLICE, "--queued", "delete")
    assert "queued-resources" in create and "--project=p" in create and "queued-resources" in delete
    (stop,) = commands(*SLICE, "stop")
    assert "pkill -TERM" in stop[-1] and "--worker=all" in stop


@pytest.mark.parametrize("per_gpu, tasks", [(False, 1), (True, 4)])
def test_a_job_has_a_process_a_node_or_a_gpu(per_gpu, tasks):
    flags = ("--nodes=2", "--gpus=4", "--time=01:00:00", "--partition=p", *(("--per_gpu",) if per_gpu else ()))
    done = launched("slurm.sh", "--dry_run", *flags, *COMMAND)
    assert done.returncode == 0 and subprocess.run(["bash", "-n"], input=done.stdout, text=True).returncode == 0
    lines = done.stdout.splitlines()
    for option in ("nodes=2", f"ntasks-per-node={tasks}", "gpus-per-node=4", "time=01:00:00", "partition=p", "requeue"):
        assert f"#SBATCH --{option}" in lines
    (line,) = (shlex.split(line) for line in lines if line.startswith("srun"))
    assert line[-4:] == list(COMMAND[1:]) and ("--gpus-per-task=1" in line) == per_gpu


@pytest.mark.parametrize(
    "script, arguments, words",
    [
        ("tpu_pod.sh", ("run", *COMMAND), "--name=NAME and --zone=ZONE"),
        ("tpu_pod.sh", (*SLICE, "run"), "no command after '--'"),
        ("tpu_pod.sh", (*SLICE, "create"), "--type=TYPE and --version=VERSION are missing"),
        ("tpu_pod.sh", (*SLICE, "jump"), "not 'jump'"),
        ("slurm.sh", ("--nodes=0", *COMMAND), "not '0'"),
        ("slurm.sh", ("--nodes=2",), "no command after '--'"),
    ],
)
def test_a_mistake_is_one_line(script, arguments, words):
    done = launched(script, *arguments)
    assert done.returncode == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1

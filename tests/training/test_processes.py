"""Several processes train the same run as one, and none of them is left behind."""

import json
import os
import subprocess
import sys
import unittest.mock

import jax
import numpy as np
import pytest
from layouts import STAGES
from small_world import without_times

from kdjax import cli
from kdjax.store import Run, Store
from kdjax.training import processes, shared_store

PROGRAM = "tests/training/layouts.py"
ALL = ("teacher", "student", "streamed", "remembering", "population")


def launcher(root, count, *flags, logs, launch=(), x64=True, **options):
    """Starts the program on processes of two devices each."""
    variables = {"JAX_ENABLE_X64": str(int(x64)), "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
    env = {**os.environ, **variables}
    env.pop("JAX_NUM_CPU_DEVICES", None)
    line = ["launch/local_processes.sh", f"--logs={logs}", *launch, str(count), "--", sys.executable, *flags]
    return subprocess.Popen(
        line, cwd=root, env=env, text=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE, **options
    )


def run_layout(root, store, data, processes, devices, what, *more, code=0, **options):
    """Runs stages on a layout, checks how they ended, and returns what was written to stderr."""
    flags = (PROGRAM, f"--store={store}", f"--data_dir={data}", f"--what={','.join(what)}", f"--cpu_devices={devices}")
    process = launcher(root, processes, *flags, *more, logs=store.parent / "logs", **options)
    out, err = process.communicate(timeout=240)
    assert process.returncode == code, (out, err, [path.read_text() for path in (store.parent / "logs").iterdir()])
    return err


def assert_same_runs(first: Store, second: Store, tolerance: float) -> float:
    """Checks that two stores have the same runs, and returns the largest difference of their variables."""
    names, differences = first.runs(), [0.0]
    assert names and names == second.runs()
    for name in names:
        a, b = first.find(name), second.find(name)
        (state, step), (other, same_step) = (run.restore_variables("last") for run in (a, b))
        assert step == same_step
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), state, other)
        jax.tree.map(lambda x, y: differences.append(float(np.max(np.abs(x - y), initial=0))), state, other)
        rows = [without_times(run.metrics()) for run in (a, b)]
        assert [row.keys() for row in rows[0]] == [row.keys() for row in rows[1]]
        for row, twin in zip(*rows, strict=True):
            assert row["train"] == pytest.approx(twin["train"], rel=max(tolerance, 1e-6))
            assert row["test"] == pytest.approx(twin["test"], rel=max(tolerance, 1e-6))
    return max(differences)


def test_two_processes_train_what_one_trains(root, tmp_path, image_file):
    """A teacher and its student: float64, 54 steps each, two processes of two devices against one of four."""
    run_layout(root, tmp_path / "two", image_file, 2, 2, ("teacher", "student"))
    one = Store(tmp_path / "one")
    with jax.enable_x64(True):
        for stage in ("teacher", "student"):
            STAGES[stage](one, image_file)
    assert_same_runs(one, Store(tmp_path / "two"), 1e-10)
    assert not list((tmp_path / "two").rglob("*.tmp"))


@pytest.fixture(scope="module")
def on_one(root, tmp_path_factory, image_file):
    store = tmp_path_factory.mktemp("one") / "store"
    run_layout(root, store, image_file, 1, 1, (*ALL, "evaluated"))
    return Store(store)


@pytest.mark.slow
@pytest.mark.parametrize("processes, devices", [(1, 2), (1, 4), (2, 1), (2, 2), (4, 1), (4, 2)])
def test_every_stage_is_the_same_on_every_layout(root, tmp_path, image_file, on_one, processes, devices):
    """Teachers, students, streams, CRD's memory, populations, `evaluate` and `analyze`, in float64."""
    run_layout(root, tmp_path / "store", image_file, processes, devices, (*ALL, "evaluated"))
    other = Store(tmp_path / "store")
    difference = assert_same_runs(on_one, other, 1e-10)
    print(f"float64, 54 steps, {processes} x {devices}: the largest difference is {difference:.1e}")
    one, many = (json.loads((store.root / "evaluated.json").read_text()) for store in (on_one, other))
    assert one["scores"]["test"] == pytest.approx(many["scores"]["test"], rel=1e-6)
    assert one["fidelity"]["pairs"][0]["agreement"] == pytest.approx(many["fidelity"]["pairs"][0]["agreement"])


@pytest.mark.slow
def test_the_first_step_in_float32_is_the_same_on_every_layout(root, tmp_path, image_file):
    layouts = [(1, 1), (1, 2), (2, 1), (2, 2), (4, 1), (4, 2)]
    for count, devices in layouts:
        store = tmp_path / f"{count}x{devices}" / "store"
        run_layout(root, store, image_file, count, devices, ("first_step",), x64=False)
        difference = assert_same_runs(Store(tmp_path / "1x1" / "store"), Store(store), 1e-5)
        print(f"float32, 1 step, {count} x {devices}: the largest difference is {difference:.1e}")


def test_every_method_of_a_run_and_a_store_is_shared():
    """A method that the shared ones lack would be called by each process for itself."""
    own = {name for name in dir(Run) if not name.startswith("_")}
    assert own <= set(vars(shared_store.SharedRun))
    own = {name for name, value in vars(Store).items() if not name.startswith("_") and callable(value)}
    assert own <= set(vars(shared_store.SharedStore))


def test_a_block_that_the_writer_passes_first_must_not_wait_for_the_others(monkeypatch):
    """The others are not in it at that time: all would wait for ever."""
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "_client", unittest.mock.Mock)
    with pytest.raises(RuntimeError, match="talks to the other processes"), processes.writer_first():
        processes.by_writer(lambda: 1)
    processes.barrier("after it")


@pytest.mark.parametrize(
    "variables, tpu, expected",
    [
        ({}, False, ""),
        ({}, True, "Cloud TPU"),
        ({"JAX_PLATFORMS": "cpu"}, True, ""),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, False, ""),  # in the batch script, before srun
        ({"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NTASKS": "2"}, False, "Slurm"),
        ({"SLURM_STEP_NODELIST": "n1", "SLURM_NTASKS": "1"}, False, ""),  # a job of submitit
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False, ""),  # a pod of its own
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, False, "Kubernetes"),
    ],
)
def test_several_processes_are_noticed_where_a_cluster_started_them(variables, tpu, expected):
    assert cli.cluster(variables, tpu) == expected


def test_under_slurm_a_process_alone_on_its_node_has_all_of_its_gpus():
    """jax would take one GPU for each process of a node."""
    alone = {"SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_GPUS_ON_NODE": "4"}
    assert processes._slurm_devices(alone) == {"local_device_ids": [0, 1, 2, 3]}
    assert processes._slurm_devices({**alone, "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}) == {}
    assert processes._slurm_devices({}) == {}


@pytest.mark.parametrize(
    "given",
    [
        ("--coordinator=here:1234",),
        ("--coordinator=here:1234", "--processes=2", "--process=2"),
        ("--coordinator=here", "--processes=2", "--process=0"),
        ("--processes=2", "--process=0"),
    ],
)
def test_half_of_what_a_process_must_be_told_is_refused(door, given):
    done = door("kdjax.evaluate", "--run=a", *given)
    assert done.returncode == 2 and "--coordinator=HOST:PORT" in done.stderr and done.stderr.count("\n") == 1

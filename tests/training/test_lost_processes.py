"""Runs of several processes that are stopped or lose a process: one line tells it, and the same command goes on."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
from test_processes import PROGRAM, assert_same_runs, run_layout

from kdjax.store import Store

pytestmark = pytest.mark.slow
HEARTBEAT = 8
WHAT = ("stoppable",)


@pytest.fixture(scope="module")
def unbroken(root, tmp_path_factory, image_file):
    """The store of a run that nothing happened to, on two processes."""
    store = tmp_path_factory.mktemp("unbroken") / "store"
    run_layout(root, store, image_file, 2, 1, WHAT)
    return Store(store)


def assert_plain(err: str) -> None:
    """Checks that a user is told in lines of kdjax alone: C++ writes to the log."""
    assert all(line.startswith("kdjax: ") for line in err.splitlines()), err


@pytest.mark.parametrize("who", ["0", "1", "launcher"])
@pytest.mark.parametrize("kind, code", [("terminate", 143), ("interrupt", 130)])
def test_a_signal_to_one_or_all_stops_all_after_one_save_and_the_run_goes_on_to_the_bit(
    kind, code, who, root, tmp_path, image_file, unbroken
):
    store = tmp_path / "store"
    err = run_layout(root, store, image_file, 2, 1, WHAT, f"--trouble={kind}:{who}", code=code)
    assert re.fullmatch(
        r"kdjax: run 'stoppable' was saved at step \d+; repeat the command to go on from there\.\n", err
    )
    assert Store(store).find("stoppable").result is None
    run_layout(root, store, image_file, 2, 1, WHAT)
    assert assert_same_runs(unbroken, Store(store), 0) == 0


@pytest.mark.parametrize("before, after", [(1, 2), (2, 1), (2, 4)])
def test_a_run_that_was_stopped_goes_on_on_another_number_of_processes(
    before, after, root, tmp_path, image_file, unbroken
):
    store = tmp_path / "store"
    run_layout(root, store, image_file, before, 1, WHAT, "--trouble=terminate:0", code=143)
    run_layout(root, store, image_file, after, 1, WHAT)
    difference = assert_same_runs(unbroken, Store(store), 1e-10)
    print(f"stopped on {before} processes, gone on with on {after}: the largest difference is {difference:.1e}")


@pytest.mark.parametrize(
    "kind, who, more",
    [
        ("start-up", 1, ()),
        ("collective", 0, ()),
        ("collective", 1, ()),
        ("save", 0, ()),
        ("save", 1, ()),
        ("collective", 1, ("--fewer",)),
    ],
)
def test_a_lost_process_is_named_and_the_launcher_starts_the_run_again(
    kind, who, more, root, tmp_path, image_file, unbroken
):
    store, flags = tmp_path / "store", (f"--trouble={kind}:{who}", f"--heartbeat={HEARTBEAT}")
    err = run_layout(root, store, image_file, 2, 1, WHAT, *flags, launch=("--restarts=1", *more))
    assert_plain(err)
    *told, again = err.splitlines()
    assert again == f"kdjax: starting again on {1 if more else 2} processes."
    assert f"process {who} of 2" in told[-1] and "is lost" in told[-1] and len(told) == 1, err
    difference = assert_same_runs(unbroken, Store(store), 1e-10 if more else 0)
    struck, resumed = (float((tmp_path / name).read_text()) for name in ("struck", "resumed"))
    print(f"{kind} of process {who} {more}: {resumed - struck:.1f} s to the next step, difference {difference:.1e}")


@pytest.mark.parametrize("kind, who", [("collective", 1), ("save", 1), ("freeze", 1), ("freeze", 0)])
def test_a_process_that_no_launcher_watches_ends_within_the_heartbeat(kind, who, root, tmp_path, image_file):
    """As on a host whose neighbour is lost: the one that is left says which, and leaves before jax aborts.

    Where process 0 is killed, jax aborts the others at once; only a launcher, which knows the exit codes, can tell.
    """
    store, port = tmp_path / "store", 20_000 + os.getpid() % 20_000
    flags = [f"--store={store}", f"--data_dir={image_file}", "--what=stoppable", f"--trouble={kind}:{who}"]
    flags += [f"--coordinator=127.0.0.1:{port}", "--processes=2", f"--heartbeat={HEARTBEAT}", "--cpu_devices=1"]
    both = []
    for process in range(2):
        env = {**os.environ, "PYTHONPATH": str(root), "KDJAX_NATIVE_LOG": str(tmp_path / f"{process}.log")}
        env.pop("JAX_NUM_CPU_DEVICES", None)
        line = [sys.executable, PROGRAM, *flags, f"--process={process}"]
        both.append(subprocess.Popen(line, cwd=root, env=env, text=True, stderr=subprocess.PIPE))
    lost, left = both[who], both[1 - who]
    try:
        err = left.communicate(timeout=120)[1]
        seconds = time.time() - float((tmp_path / "struck").read_text())
    finally:
        for process in both:
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert left.returncode == 75 and lost.returncode == -signal.SIGKILL, err
    assert_plain(err)
    assert len(err.splitlines()) == 1 and f"process {who}" in err and "is lost" in err, err
    print(f"{kind} of process {who}: the other one ended after {seconds:.1f} s of {HEARTBEAT} s")
    assert seconds < HEARTBEAT + 1

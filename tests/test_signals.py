"""SIGTERM and SIGINT of a command: at any moment, also where Python would lose an exception of a handler."""

import os
import signal
import subprocess
import sys
import time

import pytest

from kdjax import signals

IN_A_CALLBACK = """
import gc, os, signal, sys
from kdjax import cli, train_teacher
fired = []
def callback(phase, info):  # as jax's own: an exception that is raised here is printed and dropped
    if not fired and {module!r} in sys.modules:
        fired.append(1)
        os.kill(os.getpid(), signal.{name})
        [None for _ in range(1000)]
gc.callbacks.append(callback)
gc.set_threshold(200)
sys.argv = ["train_teacher.py", "--config=configs/mse_teacher.py:smoke", "--store={store}"]
cli.run(cli.train_from_flags)
"""


def environment(root) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(root), "JAX_NUM_CPU_DEVICES": "1"}


@pytest.mark.parametrize(
    "module, name",
    [
        ("kdjax.store", "SIGTERM"),
        pytest.param("kdjax.training.plan", "SIGINT", marks=pytest.mark.slow),
        pytest.param("kdjax.training.loop", "SIGTERM", marks=pytest.mark.slow),
    ],
)
def test_a_signal_in_a_callback_of_the_garbage_collector_is_obeyed(module, name, root, tmp_path):
    code = IN_A_CALLBACK.format(module=module, name=name, store=tmp_path)
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment(root), capture_output=True, text=True)
    assert done.returncode == 128 + getattr(signal, name), done.stderr
    assert done.stderr == f"kdjax: {signals.STOPPED}\n"


@pytest.mark.parametrize(
    "seconds",
    # On a busy machine Python itself may take longer than 0.1 s to reach kdjax's first line.
    [0.3, *(pytest.param(seconds, marks=pytest.mark.slow) for seconds in (0.05, 0.1, 0.6, 1, 2, 3, 4, 5, 6, 8))],
)
@pytest.mark.parametrize("number", signals.SIGNALS)
def test_a_signal_at_any_moment_ends_a_command_with_its_code(seconds, number, root, tmp_path):
    """Imports, start-up, compilation and training of a network that takes long to compile."""
    line = [sys.executable, "-m", "kdjax.train_teacher", "--config=configs/ce_teacher.py:digits,resnet20,resnet20"]
    process = subprocess.Popen([*line, f"--store={tmp_path}"], cwd=root, env=environment(root), stderr=subprocess.PIPE)
    time.sleep(seconds)
    process.send_signal(number)
    began = time.monotonic()
    error = process.communicate(timeout=signals.GRACE + 5)[1].decode()
    assert process.returncode == 128 + number and time.monotonic() - began < signals.GRACE
    assert error.splitlines()[-1].startswith("kdjax: ") and "Traceback" not in error


class Saver:
    def __init__(self, unsaved):
        self.signum, self.unsaved = 0, unsaved


def in_a_child(body) -> tuple[int, str]:
    """Runs a function in a fork of this process and returns its exit code and what it wrote to stderr."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(writer, 2)
        signals._WATCH = None
        with signals.watching():
            body(signals.watch())
        os._exit(0)
    os.close(writer)
    with open(reader) as said:
        text = said.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.1)


@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_run_with_progress_is_given_time_and_one_without_ends_at_once(monkeypatch):
    monkeypatch.setattr(signals, "GRACE", 0.3)

    def note(watch):
        watch.saver = Saver(True)
        send(signal.SIGTERM)
        send(signal.SIGTERM)  # at once again, as some senders do
        os._exit(7 if watch.saver.signum == signal.SIGTERM else 1)

    def never_saves(watch):
        watch.saver = Saver(True)
        send(signal.SIGINT)
        time.sleep(5)

    def nothing_to_save(watch):
        watch.saver = Saver(False)
        send(signal.SIGINT)
        time.sleep(5)

    assert in_a_child(note) == (7, "")
    code, text = in_a_child(never_saves)
    assert code == 130 and "could not be saved within" in text
    assert in_a_child(nothing_to_save) == (130, f"kdjax: {signals.STOPPED}\n")


@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_second_signal_after_a_while_ends_the_process(monkeypatch):
    monkeypatch.setattr(signals, "INSISTENCE", 0.05)

    def insist(watch):
        watch.saver = Saver(True)
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        time.sleep(5)

    assert in_a_child(insist)[0] == 143


def test_a_watch_gives_the_signals_back():
    before = [signal.getsignal(number) for number in signals.SIGNALS]
    with signals.watching():
        assert signals.watch() is not None
    assert [signal.getsignal(number) for number in signals.SIGNALS] == before and signals.watch() is None


def test_a_signal_that_comes_as_the_command_ends_decides_its_exit_code(root):
    program = (
        "import os, signal; from kdjax import cli; cli.define_common_flags(); "
        "cli.run(lambda: os.kill(os.getpid(), signal.SIGTERM))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert done.returncode == 143 and "stopped at once" in done.stderr, done.stderr

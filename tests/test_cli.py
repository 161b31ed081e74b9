"""The commands: exit codes, one-line errors, --help, signals and resuming after a kill."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from kdjax.store import Store

TEACHER = ("kdjax.train_teacher", "--config=configs/mse_teacher.py:smoke")


def one_line(done) -> str:
    assert "Traceback" not in done.stderr, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("kdjax: "), done.stderr
    return lines[0]


@pytest.mark.parametrize(
    "door",
    [
        *("train_teacher", "train_student", "evaluate", "run_study", "bench"),
        *("import_torch", "export", "show_model", "analyze"),
    ],
)
def test_help_shows_kdjaxs_own_flags_without_jax(door, command):
    done = command(f"kdjax.{door}", "--help")
    assert done.returncode == 0 and "--store" in done.stdout and "--cpu_devices" in done.stdout
    assert "alsologtostderr" not in done.stdout


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("kdjax.train_teacher",), "--config is missing"),
        (("kdjax.train_teacher", "--config=configs/mse_techer.py"), "Did you mean 'mse_teacher.py'"),
        (("kdjax.train_teacher", "--confg=configs/mse_teacher.py"), "Did you mean 'config'"),
        (("kdjax.train_teacher", "--config=configs/mse_teacher.py:cifar1000"), "Did you mean 'cifar100'"),
        (
            ("kdjax.train_teacher", "--config=configs/mse_teacher.py:cifar100,resnet56,resnet1110"),
            "Did you mean 'resnet110'",
        ),
        ((*TEACHER, "--config.optimizer.lerning_rate=1"), "learning_rate"),
        ((*TEACHER, "--config.epochs=many"), "epochs"),
        ((*TEACHER, "--config.epochs=0"), "config.epochs must be at least 1, not 0"),
        ((*TEACHER, "stray"), "unexpected argument 'stray'"),
        (("kdjax.train_teacher", "--config=configs/kd_student.py:smoke"), "train_student"),
        (
            ("kdjax.train_teacher", "--config=configs/mse_teacher.py:cifar10", "--data_dir=nowhere"),
            "cifar-10-python.tar.gz",
        ),
        (
            (
                "kdjax.train_student",
                "--config=configs/kd_student.py:smoke",
                "--config.teachers.a.run=x",
                "--store=nowhere",
            ),
            "train it with python -m kdjax.train_teacher --config=FILE --run=x --store=nowhere, FILE being",
        ),
        (
            (*TEACHER, "--config.losses.softmax_mse.spce=logits"),
            "loss 'softmax_mse' takes no 'spce'. Did you mean 'space'?",
        ),
        ((*TEACHER, "--config.epoch=3"), "--config.epoch=3: config has no field 'epoch'. Did you mean 'epochs'?"),
        ((*TEACHER, "--config.losses.kd=3"), "config.losses.kd must be a mapping with a 'weight', not 3"),
        ((*TEACHER, "--config.epochs=2.5"), "config.epochs must be an integer (it is 2), not 2.5"),
        (
            (*TEACHER, "--config.diagnostics=maybe"),
            "config.diagnostics must be true or false (it is False), not 'maybe'",
        ),
        ((*TEACHER, "--config.losses.softmax_mse.weight=inf"), "weight must be a number of at most 1e38"),
        ((*TEACHER, "--debug=maybe"), "flag --debug=maybe: it takes true or false"),
        ((*TEACHER, "--store="), "--store= is empty; name a folder, such as --store=runs"),
        ((*TEACHER, "--config.seed"), "the value is missing"),
        ((*TEACHER, "--config.epochs.x=3"), "config.epochs is not a mapping, so it has no field 'x'"),
        (("kdjax.evaluate",), "--run is missing"),
        (("kdjax.evaluate", "--run=nobody", "--store=nowhere"), "nobody"),
        (("kdjax.import_torch",), "--file is missing"),
        (("kdjax.import_torch", "--file=setup.py", "--model=resnet20"), "is not a weight file"),
        (("kdjax.import_torch", "--file=a.npz", "--model=resnet20", "--args=20"), "must be a mapping"),
        (("kdjax.export", "--run=nobody", "--store=nowhere"), "nobody"),
        (("kdjax.export", "--run=a", "--out=a.pth"), "must end in .safetensors"),
        (
            ("kdjax.show_model", "--config=configs/ce_teacher.py", "--config.model.features=('hiden1',)"),
            "no feature 'hiden1' (config.model.features). Did you mean 'hidden1'",
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, words, door):
    done = door(*arguments)
    assert words in one_line(done) and done.returncode == 2


@pytest.mark.parametrize(
    "override, words",
    [
        ("model.name=mlpp", "unknown model 'mlpp'. Did you mean 'mlp'"),
        ("data.name=gausian", "Did you mean 'gaussian'"),
        ("data.view=crop_flip", "crop_flip"),
        ("schedule.name=cosin", "Did you mean 'cosine'"),
        ("optimizer.name=sdg", "Did you mean 'sgd'"),
    ],
)
def test_a_wrong_name_is_one_line_and_leaves_nothing_behind(override, words, tmp_path, door):
    done = door(*TEACHER, f"--store={tmp_path}/runs", f"--config.{override}")
    assert done.returncode == 2 and words in one_line(done)
    assert not (tmp_path / "runs").exists()


def test_a_read_only_store_is_one_line(tmp_path, door):
    (tmp_path / "file").write_text("")
    done = door(*TEACHER, f"--store={tmp_path}/file")
    assert done.returncode == 2 and "file" in one_line(done)


def test_a_full_disk_is_one_line(tmp_path, root):
    """Files may not grow beyond 100 kB; the teacher's weights need more."""
    line = [sys.executable, "-m", "kdjax.train_teacher", "--config=configs/ce_teacher.py", "--config.epochs=1"]
    script = " ".join(["ulimit -f 100;", "exec", *line, f"--store={tmp_path}"])
    env = {**os.environ, "PYTHONPATH": str(root), "JAX_NUM_CPU_DEVICES": "1", "JAX_ENABLE_COMPILATION_CACHE": "0"}
    done = subprocess.run(["bash", "-c", script], cwd=root, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("kdjax: Cannot write"), done.stderr
    assert not (tmp_path / "digits" / "mlp-ce-s0" / "result.json").exists()


def test_views_are_written_to_an_image_file(tmp_path, door):
    views = ("kdjax.show_views", "--config=configs/kd_student.py", "--images=1", "--visits=1")
    assert "name an image file such as views.png" in one_line(door(*views, f"--out={tmp_path}/views.txt"))
    assert not list(tmp_path.iterdir())


def test_a_failed_run_is_exit_code_1(tmp_path, door):
    done = door(*TEACHER, f"--store={tmp_path}", "--config.optimizer.learning_rate=1e38")
    assert done.returncode == 1 and "not finite at step 1" in one_line(done)


def test_debug_shows_the_traceback(door):
    done = door("kdjax.evaluate", "--run=nobody", "--store=nowhere", "--debug")
    assert done.returncode == 2 and "Traceback" in done.stderr


LONG = (
    "kdjax.train_student", "--config=configs/alone_student.py:smoke", "--config.epochs=300",
    "--config.checkpoint.every_epochs=10", "--run=long",
)  # fmt: skip


def start(store, root) -> subprocess.Popen:
    env = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(root)}
    line = [sys.executable, "-m", *LONG, f"--store={store}"]
    return subprocess.Popen(line, cwd=root, env=env, stderr=subprocess.PIPE, text=True)


def wait_for_rows(store, rows: int) -> None:
    path = store / "long" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not path.exists() or path.read_text().count("\n") < rows:
        assert time.monotonic() < deadline, "the run never got there"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, command):
    store = tmp_path_factory.mktemp("unbroken")
    assert command(*LONG, f"--store={store}").returncode == 0
    return store


def saved(store) -> tuple[dict, list, dict]:
    run = Store(store).find("long")
    rows = [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in run.metrics()]
    result = {k: v for k, v in run.result.items() if k != "seconds"}
    return run.restore_variables("last")[0], rows, result


def assert_same_run(store, unbroken):
    (a, rows_a, result_a), (b, rows_b, result_b) = saved(store), saved(unbroken)
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert rows_a == rows_b and result_a == result_b


def test_killed_and_resumed_equals_unbroken_to_the_bit(tmp_path, unbroken, command, root):
    process = start(tmp_path, root)
    wait_for_rows(tmp_path, 33)  # three epochs after a checkpoint
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "long" / "result.json").exists()
    assert command(*LONG, f"--store={tmp_path}").returncode == 0
    assert_same_run(tmp_path, unbroken)


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_save_and_leave(number, code, tmp_path, root):
    """That such a run can be resumed is tested in test_loop.py."""
    process = start(tmp_path, root)
    wait_for_rows(tmp_path, 7)
    process.send_signal(number)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == code
    assert "Traceback" not in error
    step = int(re.search(r"was saved at step (\d+)", error.splitlines()[-1])[1])
    run = Store(tmp_path).find("long")
    assert max(run.steps()) == step and run.result is None


def test_a_locked_run_is_one_line(tmp_path, door):
    with Store(tmp_path).run("gaussian/mlp-mse-smoke-s0").lock():
        done = door(*TEACHER, f"--store={tmp_path}")
    assert done.returncode == 2 and "locked" in one_line(done)


def test_metrics_are_json_lines(unbroken):
    rows = [json.loads(line) for line in (unbroken / "long" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 300
    assert {"epoch", "step", "learning_rate", "images_per_second", "seconds", "train", "validation", "test"} <= set(
        rows[0]
    )


def test_a_terminal_sees_a_bar(tmp_path, root):
    import fcntl
    import pty
    import struct
    import termios

    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 200, 0, 0))
    env = {**os.environ, "PYTHONPATH": str(root), "JAX_NUM_CPU_DEVICES": "1"}
    line = [sys.executable, "-m", *TEACHER, f"--store={tmp_path}"]
    process = subprocess.Popen(line, cwd=root, env=env, stderr=child, stdout=subprocess.DEVNULL)
    os.close(child)
    shown = b""
    try:
        while chunk := os.read(parent, 4096):
            shown += chunk
    except OSError:  # the terminal is closed when the command ends
        pass
    assert process.wait() == 0
    assert "100%" in (text := shown.decode()) and "images/s" in text and "loss" in text


def test_a_config_file_that_fails_is_reported_by_the_last_line_of_its_traceback(command, tmp_path):
    """absl would print the whole traceback, most of it in ml_collections."""
    file = tmp_path / "mine.py"
    file.write_text("from kdjax.config import defaults\ndef get_config():\n    return defaults() + int('many')\n")
    done = command("kdjax.train_teacher", f"--config={file}")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "the file failed: ValueError: invalid literal for int()" in done.stderr


@pytest.mark.parametrize("override", [(), ("--config.x=1",)])
def test_a_config_file_with_a_missing_key_is_not_taken_for_a_wrong_override(override, door, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def get_config():\n    return {}['key']\n")
    done = door("kdjax.train_teacher", f"--config={file}", *override)
    assert done.returncode == 2 and "the file failed: KeyError: 'key'" in one_line(done)


def test_a_user_without_a_home_folder_goes_without_a_cache(monkeypatch, capsys):
    from kdjax import cli

    for name in ("HOME", "XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    cli.prepare_environment(1)
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ and capsys.readouterr().err.count("\n") == 1
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "named")
    cli.prepare_environment(1)
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "named" and not capsys.readouterr().err

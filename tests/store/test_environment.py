"""What is wrong with a machine is not taken for damage of a checkpoint, which would lose its newest steps."""

import errno
import os

import jax
import numpy as np
import pytest
from tiny_runs import run as train_run
from tiny_runs import teacher_config, write_data

from kdjax.data.cifar import load_cifar10
from kdjax.errors import UserError
from kdjax.inspection.predict import score_run
from kdjax.store import Store, packed, reading
from kdjax.store.record import Damaged, as_damage
from kdjax.training.loop import train


@pytest.fixture
def run(tmp_path):
    """A run with two checkpoints that orbax wrote, and a packed one of a finished run beside it."""
    run = Store(tmp_path).run("a")
    for step in (1, 2):
        run.save(step, {"a": np.full(3, step)}, {"step": step})
    run.close()
    Store(tmp_path).run("b").save_final(2, {"a": np.zeros(3)}, {})
    yield run
    run.close()


SYSTEM = [
    OSError(errno.EACCES, os.strerror(errno.EACCES)),
    OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
    ValueError("PERMISSION_DENIED: Error opening 'x': Permission denied [OS error 13]"),
    RuntimeError("Unable to initialize backend 'cuda': no device"),
    MemoryError(),
]


@pytest.mark.parametrize("error", SYSTEM, ids=lambda error: type(error).__name__ + str(error)[:12])
@pytest.mark.parametrize("name", ["a", "b"])
def test_an_error_of_the_system_is_told_as_such(name, error, run, tmp_path, monkeypatch, caplog):
    """The older checkpoint, which could be read, must not take the place of the newer one."""

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(reading.ocp.PyTreeCheckpointHandler, "restore", fail)
    monkeypatch.setattr(packed, "safe_open", fail)
    with pytest.raises(UserError) as raised:
        Store(tmp_path).run(name).restore({"a": np.zeros(3, int if name == "a" else float)})
    line = str(raised.value)
    assert line.startswith("Cannot read ") and "damaged" not in line and "delete" not in line and "\n" not in line
    assert not caplog.text


def test_causes_count_too_and_all_else_is_damage(tmp_path):
    try:
        try:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except PermissionError as error:
            raise ValueError("could not read") from error
    except ValueError as error:
        assert "Permission denied; change its permissions" in str(as_damage(tmp_path, error, "x"))
    assert isinstance(as_damage(tmp_path, ValueError("bad json"), "x"), Damaged)
    assert isinstance(as_damage(tmp_path, FileNotFoundError(errno.ENOENT, "gone"), "x"), Damaged)


@pytest.mark.parametrize("error", [RuntimeError("Unable to initialize backend 'foo'"), AssertionError()])
def test_a_backend_that_is_not_there_names_jax_platforms(error, tmp_path, monkeypatch):
    write_data(tmp_path / "data.npz")
    store = Store(tmp_path / "runs")
    train_run(teacher_config(tmp_path / "data.npz", epochs=1), store, "a")

    def fail():
        raise error

    monkeypatch.setenv("JAX_PLATFORMS", "foo")
    monkeypatch.setattr(jax, "local_devices", fail)
    config = teacher_config(tmp_path / "data.npz", epochs=1)
    for use in (lambda: score_run(store, "a"), lambda: train(config, store, name="b", show=False)):
        with pytest.raises(UserError, match="jax cannot use JAX_PLATFORMS='foo'"):
            use()


def test_a_data_file_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    (tmp_path / "cifar-10-batches-py").mkdir()

    def fail(*args):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("kdjax.data.cifar._read_folder", fail)
    with pytest.raises(UserError, match="cannot be read: Permission denied"):
        load_cifar10(str(tmp_path))

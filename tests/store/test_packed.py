"""Finished runs: packed to one file a checkpoint, exact and checked, and safe from kills at every step of packing."""

import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from test_checkpoints import assert_same_bits, make_state, one_line, saved, truncate

from kdjax.errors import UserError
from kdjax.store import Store, checkpoints


@pytest.fixture
def run(tmp_path):
    run = Store(tmp_path).run("a")
    yield run
    run.close()


def variables_of(state):
    return {"params": state["train"].params, "batch_stats": state["train"].batch_stats}


def finish(run, step=9, best=7, **progress):
    """Finishes a run whose state after n steps is make_state(n)."""
    progress = {"epoch": step, "best": best and {"step": best}, **progress}
    variables = variables_of(make_state(best)) if best not in (None, step) else None
    run.save_final(step, make_state(step), progress, best_step=best, best_variables=variables)
    return run


def names(run):
    return sorted(path.name for path in (run.path / "checkpoints").iterdir())


def test_a_finished_run_keeps_the_last_state_and_the_best_variables(run):
    finish(run, inf=float("inf"), tiny=5e-324)
    assert names(run) == ["7.variables.safetensors", "9.safetensors"] and run.steps() == [7, 9]
    state, progress, step = run.restore(make_state())
    assert_same_bits(make_state(9), state)
    assert step == 9 and progress == {"epoch": 9, "best": {"step": 7}, "inf": float("inf"), "tiny": 5e-324}
    for which, step in ("best", 7), (7, 7), ("last", 9), ("9", 9):
        variables, found = run.restore_variables(which)
        assert found == step
        assert_same_bits(variables_of(make_state(step)), variables)
    for which in ("best", 7):
        with pytest.raises(UserError, match="7.variables.safetensors has only the network's variables; choose 'last'"):
            run.restore(make_state(), which)
    with pytest.raises(UserError, match="no checkpoint '8'; choose 'last' or one of: 7, 9"):
        run.restore_variables(8)


@pytest.mark.parametrize("best", [9, None])
def test_one_file_if_the_last_state_is_the_best_or_there_is_no_best(run, best):
    finish(run, best=best)
    assert names(run) == ["9.safetensors"]
    if best:
        assert_same_bits(make_state(9), run.restore(make_state(), "best")[0])
        assert_same_bits(variables_of(make_state(9)), run.restore_variables("best")[0])
    else:
        with pytest.raises(UserError, match="has no best"):
            run.restore_variables("best")


@pytest.mark.parametrize("given", [True, False])
def test_checkpoints_of_orbax_are_replaced(run, given):
    saved(run, [5, 7, 8], best=7)
    run.save(9, make_state(9), {"best": {"step": 7}}, keep_best=7)  # still being written when packing begins
    variables = variables_of(make_state(7)) if given else None
    run.save_final(9, make_state(9), {"best": {"step": 7}}, best_step=7, best_variables=variables)
    assert names(run) == ["7.variables.safetensors", "9.safetensors"]
    assert_same_bits(make_state(9), run.restore(make_state())[0])
    assert_same_bits(variables_of(make_state(7)), run.restore_variables("best")[0])


def test_finishing_again_changes_nothing(run):
    finish(run)
    before = {path.name: path.read_bytes() for path in (run.path / "checkpoints").iterdir()}
    run.save_final(9, make_state(9), {"epoch": 9, "best": {"step": 7}}, best_step=7)
    assert before == {path.name: path.read_bytes() for path in (run.path / "checkpoints").iterdir()}


def test_the_best_step_has_to_be_the_one_in_progress(run):
    with pytest.raises(ValueError, match="best_step is 3"):
        run.save_final(9, make_state(9), {"best": {"step": 7}}, best_step=3)


def test_a_best_checkpoint_that_is_nowhere_is_an_error(run):
    saved(run, [8])
    with pytest.raises(UserError, match="no checkpoint '7'"):
        run.save_final(9, make_state(9), {"best": {"step": 7}}, best_step=7)
    assert run.steps() == [8]


DTYPES = [
    *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)),
    *("bool", "float16", "float32", "float64", "complex64", "complex128"),
    *(ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e4m3b11fnuz, ml_dtypes.int4, ml_dtypes.uint4),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,), (2, 3)])
def test_every_dtype_and_shape_comes_back(run, dtype, shape):
    leaf = (np.arange(np.prod(shape, dtype=int)).reshape(shape) % 5).astype(np.dtype(dtype))
    state = {"a": leaf, "b": 3, "c/d": {"e": leaf}}
    run.save_final(1, state, {})
    assert_same_bits(state | {"b": np.asarray(3)}, run.restore(state)[0])


@pytest.mark.parametrize("save", ["save", "save_final"])
def test_layouts_in_memory_and_keys_with_slashes(run, save):
    square = np.arange(12.0).reshape(3, 4)
    state = {"fortran": np.asfortranarray(square), "strided": square[::2, ::-1], "sums/train/loss": np.float32(2)}
    getattr(run, save)(1, state, {})
    run.wait()
    restored, _, _ = run.restore(state)
    assert restored.keys() == state.keys()
    for name, leaf in state.items():
        np.testing.assert_array_equal(restored[name], leaf)


def test_leaves_with_the_same_name_are_refused(run):
    with pytest.raises(ValueError, match="same name"):
        run.save_final(1, {"a/b": np.zeros(1), "a": {"b": np.ones(1)}}, {})


def test_restored_arrays_can_be_written(run):
    finish(run)
    for leaf in jax.tree.leaves(run.restore(make_state())[0]):
        leaf[...] = 0
    assert_same_bits(make_state(9), run.restore(make_state())[0])


def test_a_packed_file_is_a_safetensors_file(run):
    finish(run)
    with safe_open(run.path / "checkpoints" / "9.safetensors", framework="np") as file:
        kernel = file.get_tensor("train/params/dense/kernel")
        entry = json.loads(file.metadata()["kdjax"])
    np.testing.assert_array_equal(kernel, make_state(9)["train"].params["dense"]["kernel"])
    assert entry["progress"]["best"] == {"step": 7} and entry["dtypes"]["train/params/dense/bias"] == "bfloat16"


def mlp_state(*widths):
    random = np.random.default_rng(0)
    layers = {
        f"dense{number}": {"kernel": random.normal(size=(a, b)).astype("f4"), "bias": np.zeros(b, "f4")}
        for number, (a, b) in enumerate(zip(widths, widths[1:]))
    }
    train = {"step": np.int32(0), "params": layers, "batch_stats": {}, "opt_state": {"0": {"trace": {"model": layers}}}}
    return {"train": train, "sums": {str(number): np.float32(0) for number in range(7)}}


@pytest.mark.parametrize("widths", [(64, 512, 512, 10), (64, 12, 10)])
def test_a_finished_run_is_small(run, widths):
    state, progress = mlp_state(*widths), {"epoch": 40, "best": {"epoch": 30, "step": 600, "accuracy": 0.987654321}}
    variables = {"params": state["train"]["params"], "batch_stats": {}}
    run.begin({"config": {}})
    run.append_metrics({"epoch": 1})
    with run.lock():
        run.save(700, state, progress)
        run.save_final(800, state, progress, best_step=600, best_variables=variables)
        run.write_result({})
    files = [path for path in run.path.rglob("*") if path.is_file()]
    leaves = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves([state, variables]))
    assert len(files) <= 8
    assert sum(path.stat().st_size for path in files if path.suffix == ".safetensors") <= 1.3 * leaves


@pytest.mark.parametrize("given", [True, False])
def test_a_large_state_stays_with_orbax(run, monkeypatch, given):
    monkeypatch.setattr(checkpoints, "PACKED_BYTES", 1000)
    if given:
        finish(run)
        assert names(run) == ["7.variables.safetensors", "9"]
    else:
        saved(run, [7], best=7)
        run.save_final(9, make_state(9), {"best": {"step": 7}}, best_step=7)
        assert names(run) == ["7", "9"]
    assert run.steps() == [7, 9]
    assert_same_bits(make_state(9), run.restore(make_state())[0])
    assert_same_bits(variables_of(make_state(7)), run.restore_variables("best")[0])


def test_stores_of_format_1_open_unchanged(run, tmp_path):
    saved(run, [7, 9], best=7)
    (run.path / "manifest.json").write_text(json.dumps({"format": 1, "config": {}}))
    before = sorted(run.path.rglob("*"))
    old = Store(tmp_path).find("a")
    assert old.manifest["format"] == 1
    old.begin({"config": {}})
    assert_same_bits(make_state(9), old.restore(make_state())[0])
    assert_same_bits(make_state(7), old.restore(make_state(), "best")[0])
    assert_same_bits(variables_of(make_state(7)), old.restore_variables("best")[0])
    assert sorted(run.path.rglob("*")) == before


# Damage


def flip_header(path):
    data = bytearray(path.read_bytes())
    data[100] ^= 0x10
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("damage", [truncate, flip_header, lambda path: path.write_bytes(b"")])
def test_a_damaged_file_gives_way_to_the_other_with_a_warning(run, damage, caplog):
    finish(run)
    last, best = run.path / "checkpoints" / "9.safetensors", run.path / "checkpoints" / "7.variables.safetensors"
    damage(last)
    with caplog.at_level("WARNING", logger="absl"):
        variables, step = run.restore_variables("last")
    assert step == 7
    assert_same_bits(variables_of(make_state(7)), variables)
    (warning,) = [record.getMessage() for record in caplog.records]
    assert str(last) in warning and "trying step 7 instead" in warning and "\n" not in warning
    assert run.restore_variables("best")[1] == 7
    for read in (lambda: run.restore(make_state()), lambda: run.restore_variables(9)):
        with pytest.raises(UserError, match="9.safetensors is damaged") as error:
            read()
        one_line(error)
    damage(best)
    with pytest.raises(UserError, match="7.variables.safetensors is damaged"):
        run.restore_variables("best")


def test_a_damaged_packed_file_gives_way_to_orbax_until_that_is_deleted(run, caplog):
    saved(run, [9])
    folder = run.path / "checkpoints" / "9"
    shutil.copytree(folder, run.path / "kept")
    finish(run, best=None)
    shutil.move(run.path / "kept", folder)
    truncate(run.path / "checkpoints" / "9.safetensors")
    assert_same_bits(make_state(9), run.restore(make_state())[0])
    assert "9.safetensors is damaged" in caplog.text


def test_every_flipped_bit_is_noticed(run):
    """Flips a bit of many bytes of the header, and of some bytes of the leaves."""
    finish(run, best=None)
    path = run.path / "checkpoints" / "9.safetensors"
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    unnoticed = 0
    for place in [*range(0, start, 5), *range(start, len(whole), 97)]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << place % 7)]) + whole[place + 1 :])
        try:
            state, progress, _ = run.restore(make_state())
        except UserError as error:
            assert "damaged" in str(error) and "\n" not in str(error)
        else:
            assert_same_bits(make_state(9), state)
            assert progress == {"epoch": 9, "best": None}
            unnoticed += 1
    assert unnoticed <= 2  # spaces at the end of the header, which has a length that 8 divides


def test_leaves_that_differ_are_named(run):
    finish(run)
    with pytest.raises(UserError, match="9.safetensors lacks the leaf 'more'; it was written by another model"):
        run.restore(make_state() | {"more": np.zeros(2)})


# Kills


class Killed(BaseException):
    """Stands for a process that ends here: it is no Exception, so that nothing cleans up."""


def kill_at(monkeypatch, number):
    """Raises Killed instead of the call of that number that changes the disk, and returns the names of the calls."""
    made = []

    def wrap(name):
        real = getattr(os, name)

        def call(*args, **kwargs):
            made.append(name)
            if len(made) == number:
                raise Killed
            real(*args, **kwargs)

        return call

    for name in ("fsync", "replace", "unlink", "rmdir"):
        monkeypatch.setattr(os, name, wrap(name))
    return made


BEFORE_THE_LAST_STATE = 4  # calls: those of the best variables are three


def before_the_end(store):
    """Returns a run at its last step: the best state at step 7 and the one of step 8 are on disk, and remains."""
    run = saved(store.run("a"), [7, 8], best=7)
    (run.path / "checkpoints" / "8.orbax-checkpoint-tmp").mkdir()
    (run.path / "checkpoints" / "9.safetensors.77.tmp").write_bytes(b"half")
    return run


def test_a_kill_at_any_moment_leaves_a_run_that_resumes(tmp_path):
    number, seen = 0, []
    original = before_the_end(Store(tmp_path / "original"))
    while True:
        number += 1
        shutil.copytree(original.path, tmp_path / str(number) / "a")
        run = Store(tmp_path / str(number)).run("a")
        with pytest.MonkeyPatch.context() as patch:
            made = kill_at(patch, number)
            try:
                finish(run)
            except Killed:
                seen.append(made[-1])
            else:
                break
        for half in (run.path / "checkpoints").glob("*.tmp"):
            truncate(half)
        again = Store(tmp_path / str(number)).run("a")
        state, progress, step = again.restore(make_state())
        assert step in (8, 9) and progress["best"] == {"step": 7}
        assert_same_bits(make_state(step), state)
        assert again.restore_variables("last")[1] == step
        assert_same_bits(variables_of(make_state(7)), again.restore_variables("best")[0])
        if step == 8:  # it makes the last step again, and saves it as a run in progress does
            again.save(9, make_state(9), {"best": {"step": 7}}, keep_best=7)
        again.save_final(9, make_state(9), {"epoch": 9, "best": {"step": 7}}, best_step=7)
        assert names(again) == ["7.variables.safetensors", "9.safetensors"]
        assert_same_bits(make_state(9), again.restore(make_state())[0])
        assert_same_bits(variables_of(make_state(7)), again.restore_variables("best")[0])
    written = ["fsync", "replace", "fsync"]  # the file, its name, and the folder that has the name
    assert seen[:6] == [*written, *written] and {"unlink", "rmdir"} <= set(seen) and len(seen) > 20
    assert names(run) == ["7.variables.safetensors", "9.safetensors"]


def test_a_kill_before_the_first_whole_checkpoint_leaves_a_run_that_starts_over(run, monkeypatch):
    (run.path / "checkpoints").mkdir(parents=True)
    with monkeypatch.context() as patch:
        kill_at(patch, BEFORE_THE_LAST_STATE)
        with pytest.raises(Killed):
            finish(run)
    assert "7.variables.safetensors" in names(run) and run.steps() == []
    with pytest.raises(UserError, match="train it first"):
        run.restore_variables("last")
    finish(run, best=6)  # another number of devices can make another state the best one
    assert names(run) == ["6.variables.safetensors", "9.safetensors"]


def test_variables_of_an_interrupted_end_do_not_stay_beside_later_checkpoints(run, monkeypatch):
    saved(run, [5])
    with monkeypatch.context() as patch:
        kill_at(patch, BEFORE_THE_LAST_STATE)
        with pytest.raises(Killed):
            finish(run)
    assert run.steps() == [5]
    saved(run, [8], best=5)
    assert run.steps() == [5, 8] and "7.variables.safetensors" not in names(run)


def test_a_run_that_went_back_replaces_a_packed_checkpoint(run):
    finish(run)
    truncate(run.path / "checkpoints" / "9.safetensors")
    saved(run, [6])
    assert names(run) == ["6"] and run.restore(make_state())[2] == 6


WRITER = """
import sys
import numpy as np
from kdjax.store import Store
run, state = Store(sys.argv[1]).run("a"), {"a": np.ones(4_000_000)}
run.save(1, state, {"step": 1})
run.wait()
print("saved", flush=True)
for step in range(2, 1000):
    run.save_final(step, {"a": np.full(4_000_000, float(step))}, {"step": step})
"""


def test_a_killed_process_leaves_a_whole_checkpoint(run, tmp_path):
    child = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == "saved\n"
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.3)
    finally:
        child.kill()
        child.wait()
    state, progress, step = run.restore({"a": np.zeros(4_000_000)})
    assert progress == {"step": step} and (state["a"] == step).all()
    run.save_final(1000, {"a": np.zeros(3)}, {})
    assert names(run) == ["1000.safetensors"]


@pytest.mark.parametrize("limit, written", [(1000, ["8"]), (4000, ["7.variables.safetensors", "8"])])
def test_a_file_that_is_too_large_is_one_line(run, limit, written):
    saved(run, [8], best=8)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(UserError, match="^Cannot write .*safetensors: File too large; raise the limit") as error:
            finish(run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    one_line(error)
    assert names(run) == written
    assert_same_bits(make_state(8), run.restore(make_state())[0])


def test_a_full_disk_is_one_line_and_earlier_checkpoints_stay_whole(run, monkeypatch):
    saved(run, [8], best=8)
    before = names(run)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="^Cannot write .*safetensors: No space left on device; free some") as error:
            finish(run)
    one_line(error)
    assert names(run) == before
    assert_same_bits(make_state(8), run.restore(make_state())[0])


def test_a_checkpoint_that_cannot_be_deleted_is_one_line(run, monkeypatch):
    saved(run, [8])

    def refuse(path, *args, **kwargs):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", refuse)
        with pytest.raises(UserError, match="^Cannot delete files of .*checkpoints: Permission denied; ") as error:
            finish(run)
    one_line(error)
    assert_same_bits(make_state(9), run.restore(make_state())[0])


def test_a_packed_file_has_the_permissions_of_the_other_files(run):
    run.begin({"config": {}})
    finish(run)
    modes = {path.stat().st_mode for path in run.path.rglob("*.*") if path.is_file()}
    assert len(modes) == 1


def test_packing_starts_no_threads_and_leaves_no_files_open(tmp_path):
    finish(Store(tmp_path).run("first"))
    files = len(list(pathlib.Path("/proc/self/fd").iterdir()))
    for number in range(3):
        run = finish(Store(tmp_path).run(f"run{number}"))
        run.restore(make_state())
    assert len(list(pathlib.Path("/proc/self/fd").iterdir())) <= files

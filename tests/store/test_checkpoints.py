"""Checkpoints: exact, kept as asked for, and checked; damage, full disks and killed processes are survived."""

import gc
import logging
import pathlib
import resource
import shutil
import subprocess
import sys
import threading
import time
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdjax.errors import UserError
from kdjax.store import Store


@flax.struct.dataclass
class State:
    step: Any
    params: Any
    batch_stats: Any
    opt_state: Any


def make_state(seed=0, batch_stats=True):
    random = np.random.default_rng(seed)
    params = {
        "dense": {
            "kernel": random.normal(size=(64, 10)).astype("float32"),
            "bias": jnp.asarray(random.normal(size=10), "bfloat16"),
        },
        "wide": random.normal(size=(3, 0)),
    }
    tx = optax.chain(optax.add_decayed_weights(0.1), optax.trace(0.9), optax.scale_by_adam())
    stats = {"norm": {"mean": random.normal(size=10)}} if batch_stats else {}
    sums = {"loss": np.float64(random.normal()), "n": np.int32(3), "nan": jnp.float32(jnp.nan), "flag": np.True_}
    extra = {"key": np.array([1, 2**32 - 1], "uint32"), "empty": {}, "nothing": None, "count": 7}
    extra["pair"] = (np.float32(1), [np.int8(2)])
    train = State(step=jnp.int32(seed), params=params, batch_stats=stats, opt_state=tx.init(params))
    return {"train": train, "sums": sums, "extra": extra}


def assert_same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), (_, y) in zip(jax.tree.leaves_with_path(a), jax.tree.leaves_with_path(b)):
        x = np.asarray(x)
        assert (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes()), path
        assert isinstance(y, np.ndarray), path


@pytest.fixture
def run(tmp_path):
    run = Store(tmp_path).run("a")
    yield run
    run.close()


def saved(run, steps, best=None, **progress):
    for step in steps:
        run.save(step, make_state(step), {"epoch": step, "best": best and {"step": best}, **progress}, keep_best=best)
    run.close()
    return run


def data_files(run, step):
    """Returns the files that contain the leaves, the largest first."""
    files = [path for path in (run.path / "checkpoints" / str(step) / "state").rglob("*") if path.is_file()]
    return sorted((path for path in files if path.parent.name == "d"), key=lambda path: -path.stat().st_size)


def one_line(error):
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    return str(error.value)


@pytest.mark.parametrize("x64", [False, True])
def test_state_and_progress_come_back_to_the_bit(run, x64):
    with jax.enable_x64(x64):
        state = make_state(1)
        progress = {"epoch": 3, "sum": 0.1 + 0.2, "tiny": 5e-324, "f32": np.float32(0.1), "inf": np.inf, "best": None}
        run.save(7, state, progress)
        run.wait()
        restored, found, step = run.restore(jax.tree.map(np.zeros_like, state))
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), np.asarray(x).dtype), state)
        assert_same_bits(state, run.restore(shapes)[0])
    assert_same_bits(state, restored)
    assert step == 7 and found == progress | {"f32": float(np.float32(0.1))}


def test_another_process_reads_while_this_one_writes(run, tmp_path):
    run.save(1, make_state(1), {"epoch": 1})
    run.wait()
    run.save(2, make_state(2), {"epoch": 2})
    reader = Store(tmp_path).run("a")  # a process that loads a teacher must delete nothing
    assert reader.restore(make_state())[2] in (1, 2)
    run.wait()
    assert reader.restore(make_state())[2] == 2


def test_variables_are_read_without_the_rest(run):
    state = make_state(2)
    run.save(1, state, {})
    run.save(2, make_state(3, batch_stats=False), {}, keep_best=1)
    run.wait()
    variables, step = run.restore_variables(1)
    assert step == 1
    assert_same_bits({"params": state["train"].params, "batch_stats": state["train"].batch_stats}, variables)
    assert run.restore_variables()[0]["batch_stats"] == {}


def test_buffers_may_be_donated_and_overwritten_after_save(run):
    step = jax.jit(lambda x: x * 2 + 1, donate_argnums=0)
    device, host = jnp.arange(300_000, dtype=jnp.float32), np.arange(300_000.0)
    expected = np.array(device)
    for number in range(1, 4):
        run.save(number, {"device": device, "host": host}, {}, keep_best=1)
        device = step(device)
        host[:] = -1
        if number == 1:
            del device
            device = step(jnp.zeros(300_000))
    run.wait()
    state, _, _ = run.restore({"device": expected, "host": host}, 1)
    np.testing.assert_array_equal(state["device"], expected)
    np.testing.assert_array_equal(state["host"], expected)


def test_latest_and_best_are_kept_or_the_two_latest(run):
    """Damage to one checkpoint never loses the run."""
    bests, kept = [1, 2, 2, 2, 5], []
    for step, best in zip(range(1, 6), bests):
        run.save(step, make_state(step), {"best": {"step": best}}, keep_best=best)
        run.wait()
        kept.append(run.steps())
    assert kept == [[1], [1, 2], [2, 3], [2, 4], [4, 5]]
    for step in (6, 7):
        run.save(step, make_state(step), {})
        run.wait()
    assert run.steps() == [6, 7]


def test_the_best_outlives_a_restart(run, tmp_path):
    saved(run, [1, 2], best=1)
    again = saved(Store(tmp_path).run("a"), [3, 4], best=1)
    assert again.steps() == [1, 4]
    assert again.restore(make_state(), "best")[2] == 1
    for which in ("last", 4, "4"):
        assert again.restore(make_state(), which)[2] == 4


def test_a_missing_checkpoint_is_an_error_that_lists_what_there_is(run):
    with pytest.raises(UserError, match="'a' has no checkpoint .* train it first"):
        run.restore(make_state())
    saved(run, [1])
    with pytest.raises(UserError, match="has no best"):
        run.restore(make_state(), "best")
    for which in (9, "9", "bset"):
        with pytest.raises(UserError, match=f"no checkpoint '{which}'; choose 'last' or one of: 1"):
            run.restore_variables(which)


def test_leaves_that_differ_are_named(run):
    saved(run, [1])

    def message(**extra):
        with pytest.raises(UserError) as error:
            run.restore(make_state() | extra)
        return one_line(error)

    extra = make_state()["extra"]
    assert "lacks the leaf 'more/a' and 1 more" in message(more={"a": np.zeros(2), "b": np.zeros(2)})
    assert "has the unexpected leaf 'sums/flag' and 3 more" in message(sums={})
    for wrong in (np.zeros(3, "uint32"), np.zeros(2, "int32")):
        words = f"leaf 'extra/key' is uint32[2] and should be {wrong.dtype}[{wrong.size}]"
        assert words in message(extra=extra | {"key": wrong})


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("damage", [truncate, flip, pathlib.Path.unlink, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("which", ["data", "record", "all"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(run, tmp_path, damage, which, caplog):
    saved(run, [1, 2], best=1)
    newest = run.path / "checkpoints" / "2"
    files = {
        "data": data_files(run, 2)[:1],
        "record": [newest / "progress" / "metadata"],
        "all": [path for path in newest.rglob("*") if path.is_file()],
    }
    for path in files[which]:
        damage(path)
    with caplog.at_level("WARNING", logger="absl"):
        state, _, step = run.restore(make_state())
    assert step == 1 and run.restore_variables()[1] == 1
    assert_same_bits(make_state(1), state)
    (warning, *_) = [record.getMessage() for record in caplog.records]
    assert str(newest) in warning and "trying step 1" in warning and "\n" not in warning
    with pytest.raises(UserError, match="2 is damaged") as error:
        run.restore(make_state(), 2)
    one_line(error)
    again = saved(Store(tmp_path).run("a"), [2], best=1)  # the run resumes from step 1 and saves step 2 again
    assert again.restore(make_state())[2] == 2 and again.steps() == [1, 2]


def test_every_flipped_bit_is_noticed(run, monkeypatch):
    # Several arrays are read at once and one error is raised; asyncio logs the others when their tasks are collected.
    monkeypatch.setattr(logging.getLogger("asyncio"), "disabled", True)
    saved(run, [1])
    folder = run.path / "checkpoints" / "1"
    for path in [*data_files(run, 1), folder / "progress" / "metadata"]:
        whole = path.read_bytes()
        for place in np.linspace(0, len(whole) - 1, 5).astype(int):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            try:
                state, _, _ = run.restore(make_state())
            except UserError as error:
                assert "damaged" in str(error) and "\n" not in str(error)
            else:
                assert_same_bits(make_state(1), state)  # nothing reads this byte
        path.write_bytes(whole)
    gc.collect()


def test_a_run_that_went_back_replaces_what_it_left(run, tmp_path):
    saved(run, [1, 2, 5], best=2)
    again = saved(Store(tmp_path).run("a"), [3], best=2)
    assert again.steps() == [2, 3]
    again.save(3, make_state(9), {"epoch": 9})
    again.close()
    state, progress, _ = again.restore(make_state())
    assert_same_bits(make_state(9), state)
    assert progress["epoch"] == 9


def test_saving_the_same_again_writes_nothing(run):
    saved(run, [4])
    before = (run.path / "checkpoints" / "4").stat().st_ino
    saved(run, [4])
    assert (run.path / "checkpoints" / "4").stat().st_ino == before


def test_killed_while_saving(run, tmp_path):
    child = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == "saved 1\n"
        half = wait_for(lambda: [path for path in (run.path / "checkpoints").iterdir() if path.name != "1"], child)
    finally:
        child.kill()
        child.wait()
    like = {"a": np.zeros(4_000_000)}
    assert half and run.steps() == [1]
    state, progress, step = run.restore(like)
    assert step == 1 and progress == {"epoch": 1} and (state["a"][0], state["a"][-1]) == (1.0, 1.0)
    run.save(2, {"a": np.full(10, 2.0)}, {"epoch": 2})
    run.close()
    assert sorted(path.name for path in (run.path / "checkpoints").iterdir()) == ["1", "2"]
    assert run.restore({"a": np.zeros(10)})[1] == {"epoch": 2}


WRITER = """
import sys
import numpy as np
from kdjax.store import Store
run = Store(sys.argv[1]).run("a")
run.save(1, {"a": np.ones(4_000_000)}, {"epoch": 1})
run.wait()
print("saved 1", flush=True)
run.save(2, {"a": np.random.default_rng(0).normal(size=8_000_000)}, {"epoch": 2})
run.wait()
print("too late", flush=True)
"""


def wait_for(condition, child, seconds=30):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert child.poll() is None and time.monotonic() < end
        time.sleep(0.001)
    return found


def test_a_full_disk_is_one_line_and_earlier_checkpoints_stay_whole(run, capfd):
    saved(run, [1])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UserError, match="^Cannot write .*too large; ") as error:
            run.save(2, {"a": np.random.default_rng(0).normal(size=100_000)}, {})
            run.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    one_line(error)
    assert run.steps() == [1]
    assert_same_bits(make_state(1), run.restore(make_state())[0])
    saved(run, [2])  # the limit is lifted
    assert sorted(path.name for path in (run.path / "checkpoints").iterdir()) == ["1", "2"]
    assert "Traceback" not in "".join(capfd.readouterr())


def assert_no_more_threads_than(count: int) -> None:
    """Waits, since threads end a moment after they are told to."""
    deadline = time.monotonic() + 10
    while threading.active_count() > count and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= count, threading.enumerate()


def test_a_store_that_vanishes_is_one_line(run):
    run.save(1, make_state(1), {})
    run.wait()
    shutil.rmtree(run.path)
    run.path.write_text("")
    threads = threading.active_count()
    with pytest.raises(UserError, match="^Cannot write ") as error:
        run.save(2, make_state(2), {})
        run.wait()
    one_line(error)
    run.close()
    assert_no_more_threads_than(threads)  # a remaining thread would keep the process from ending


def test_many_runs_leave_no_threads_and_no_logs(tmp_path, capfd):
    def train(name):
        run = Store(tmp_path).run(name)
        saved(run, [1, 2], best=1)
        run.restore(make_state())

    train("first")
    threads, files = threading.active_count(), len(list(pathlib.Path("/proc/self/fd").iterdir()))
    for number in range(5):
        train(f"run{number}")
    assert_no_more_threads_than(threads)
    assert len(list(pathlib.Path("/proc/self/fd").iterdir())) <= files
    assert "".join(capfd.readouterr()) == ""

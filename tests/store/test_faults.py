"""Faults of the disk, kills and earlier versions: a store loses nothing, mixes nothing up, and says what is wrong."""

import contextlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest
from small_world import stop_after, without_times
from tiny_runs import edit, run, student_config, teacher_config, write_data

from kdjax.data.archives import unpack
from kdjax.errors import Interrupted, UserError
from kdjax.inspection.predict import score_run
from kdjax.store import Store, files, lock

STORES = pathlib.Path(__file__).with_name("stores")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A store with a run and its data, and a copy of the run that was stopped after its second epoch."""
    folder = tmp_path_factory.mktemp("faults")
    write_data(folder / "data.npz")
    run(config(folder), Store(folder / "runs"), "whole")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        stop_after(2, patch)
        run(config(folder), Store(folder / "runs"), "stopped")
    return folder


def config(folder, **changed):
    return teacher_config(folder / "data.npz", epochs=3, **changed)


@pytest.fixture
def store(folder, tmp_path):
    shutil.copytree(folder / "runs", tmp_path / "runs")
    return Store(tmp_path / "runs")


def assert_same(store, name, other="whole"):
    a, b = store.find(name), store.find(other)
    assert without_times(a.metrics()) == without_times(b.metrics())
    assert {**a.result, "seconds": 0} == {**b.result, "seconds": 0}
    jax.tree.map(np.testing.assert_array_equal, a.restore_variables("last")[0], b.restore_variables("last")[0])


# The n-th fault


class Fault(OSError):
    pass


def fail_at(patch, number: int, kill: bool = False) -> list[str]:
    """Lets the call of that number that writes, renames or syncs fail, and all later ones too; returns the calls."""
    made = []

    def wrap(owner, name):
        real = getattr(owner, name)

        def call(*args, **kwargs):
            made.append(name)
            if len(made) >= number:
                raise KeyboardInterrupt if kill else Fault(28, "No space left on device")
            return real(*args, **kwargs)

        patch.setattr(owner, name, call)

    for owner, name in ((os, "fsync"), (os, "replace"), (os, "rename"), (os, "mkdir"), (files, "write_parts")):
        wrap(owner, name)
    wrap(files, "append_line")
    return made


def fault(store, folder, number, kill) -> list[str]:
    """Resumes the stopped run with a fault, looks at what is left, and resumes it again."""
    with pytest.MonkeyPatch.context() as patch:
        made = fail_at(patch, number, kill)
        try:
            run(config(folder), store, "stopped")
        except UserError as error:
            assert not kill and "\n" not in str(error) and "No space left" in str(error)
        except KeyboardInterrupt:
            assert kill
    if len(made) >= number:
        assert run(config(folder), store, "stopped")["last"]["epoch"] == 3
    assert_same(store, "stopped")
    assert not list((store.root / "stopped").rglob("*.tmp"))
    return made


@pytest.mark.parametrize("kill", [False, True])
@pytest.mark.parametrize("first", [1, *(pytest.param(first, marks=pytest.mark.slow) for first in (2, 3, 4, 5))])
def test_a_fault_at_every_write_rename_and_sync_loses_nothing(folder, tmp_path, first, kill):
    """Every fifth place in the ordinary suite, every place in the slow one."""
    number, places = first, 0
    while True:
        copy = tmp_path / str(number)
        shutil.copytree(folder / "runs", copy)
        made = fault(Store(copy), folder, number, kill)
        shutil.rmtree(copy)
        if len(made) < number:
            break
        number, places = number + 5, places + 1
    assert places >= 3


# Kills at random moments

COMMANDS = {
    "train": ("kdjax.train_teacher", "--config={config}", "--run=r"),
    "study": ("kdjax.run_study", "--config=configs/tolerant_generations.py:smoke"),
    "import": ("kdjax.import_torch", "--file={weights}", "--model=mlp", '--args={{"hidden": [3]}}', "--run=r"),
    "population": ("kdjax.run_study", "--config=configs/studies/quickstart.py:smoke"),
}
CONFIG = """
from kdjax.config import defaults

def get_config():
    config = defaults()
    config.name, config.epochs, config.batch_size, config.eval_batch_size = "tiny", 40, 8, 8
    config.data.name, config.data.args, config.data.validation = "arrays", {{"path": {path!r}}}, 0.25
    config.model.args, config.losses = {{"hidden": (3,)}}, {{"cross_entropy": {{"weight": 1.0}}}}
    config.checkpoint.every_epochs = 1
    return config
"""


@pytest.fixture(scope="module")
def killed_world(tmp_path_factory, command):
    """What the commands read, and the store of each command that was never killed."""
    world = tmp_path_factory.mktemp("killed")
    write_data(world / "data.npz")
    (world / "tiny.py").write_text(CONFIG.format(path=str(world / "data.npz")))
    return world


def line_of(name, world, store) -> list[str]:
    values = {"config": world / "tiny.py", "weights": world / "weights.npz"}
    return [part.format(**values) for part in COMMANDS[name]] + [f"--store={store}"]


def contents(store: Store) -> dict:
    found = {}
    for name in store.runs():
        one = store.find(name)
        variables = jax.tree.map(np.ndarray.tobytes, one.restore_variables("last")[0])
        found[name] = (without_times(one.metrics()), {**one.result, "seconds": 0}, variables)
    return found


def kill_and_repeat(name, world, store, command, root, seed, most) -> int:
    """Kills a command at random moments until it ends by itself; returns how often it was killed."""
    draw, kills = random.Random(seed), 0
    env = {**os.environ, "PYTHONPATH": str(root)}
    for variable in ("JAX_NUM_CPU_DEVICES", "NPROC"):
        env.pop(variable, None)
    while kills < most:
        process = subprocess.Popen(
            [sys.executable, "-m", *line_of(name, world, store)], cwd=root, env=env, stderr=subprocess.PIPE, text=True,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            error = process.communicate(timeout=draw.uniform(0.2, 6.0))[1]
        except subprocess.TimeoutExpired:
            number = draw.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
            process.send_signal(number)
            error = process.communicate(timeout=60)[1]
            ended = (0, -number if number == signal.SIGKILL else 128 + number)
            assert process.returncode in ended and "Traceback" not in error, error
            kills += 1
        else:
            assert process.returncode == 0, error
            return kills
    done = command(*line_of(name, world, store))
    assert done.returncode == 0, done.stderr
    return kills


@pytest.mark.parametrize(
    "name, kills",
    [
        pytest.param("train", 25, marks=pytest.mark.slow),
        pytest.param("study", 15, marks=pytest.mark.slow),
        pytest.param("population", 10, marks=pytest.mark.slow),
    ],
)
def test_a_command_that_was_killed_at_random_moments_ends_as_an_unbroken_one(
    name, kills, killed_world, tmp_path, command, root
):
    done = command(*line_of(name, killed_world, tmp_path / "unbroken"))
    assert done.returncode == 0, done.stderr
    expected, made, seed = contents(Store(tmp_path / "unbroken")), 0, 0
    while made < kills:
        store = tmp_path / str(seed)
        made += kill_and_repeat(name, killed_world, store, command, root, seed, kills - made)
        assert contents(Store(store)) == expected
        seed += 1
        if seed > 2 * kills:
            break
    print(f"{name}: {made} kills, nothing lost")


@pytest.mark.slow
def test_an_import_that_was_killed_at_random_moments_is_whole_in_the_end(killed_world, tmp_path, command, root):
    run(teacher_config(killed_world / "data.npz"), Store(tmp_path / "teachers"), "t")
    out = killed_world / "weights.npz"
    done = command("kdjax.export", "--run=t", "--format=npz", f"--out={out}", f"--store={tmp_path / 'teachers'}")
    assert done.returncode == 0, done.stderr
    for seed in range(4):
        kill_and_repeat("import", killed_world, tmp_path / str(seed), command, root, seed, 3)
        assert Store(tmp_path / str(seed)).find("r").result is not None


class Killed(BaseException):
    """Stands for a process that ends here."""


def test_an_archive_whose_unpacking_was_killed_anywhere_is_unpacked_whole_by_the_next_call(tmp_path):
    """What prepare_data does: a folder of data appears only when it is complete."""
    for number in range(6):
        (tmp_path / "set" / "train").mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / "train" / f"{number}.txt").write_text("x" * number)
    archive = pathlib.Path(shutil.make_archive(str(tmp_path / "set"), "zip", tmp_path, "set"))
    wanted, number = sorted(path.name for path in (tmp_path / "set" / "train").iterdir()), 0
    while number >= 0:
        folder, made = tmp_path / str(number) / "set", []

        def wrap(real, made=made, number=number):
            def call(*args, **kwargs):
                made.append(real)
                if len(made) > number:
                    raise Killed
                return real(*args, **kwargs)

            return call

        folder.parent.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            for owner, name in ((os, "replace"), (os, "mkdir"), (zipfile.ZipFile, "extract"), (shutil, "rmtree")):
                patch.setattr(owner, name, wrap(getattr(owner, name)))
            with contextlib.suppress(Killed):
                unpack(archive, folder)
        done = len(made) <= number
        if not done:
            assert not folder.exists() or sorted(path.name for path in (folder / "train").iterdir()) == wanted
            unpack(archive, folder) if not folder.exists() else None
        assert sorted(path.name for path in (folder / "train").iterdir()) == wanted
        number = -1 if done else number + 1


# Lost and doubled files


def test_a_folder_without_its_manifest_is_not_taken_over(store, folder):
    for name in ("whole", "stopped"):
        (store.root / name / "manifest.json").unlink()
        before = sorted(path for path in (store.root / name).rglob("*"))
        with pytest.raises(UserError, match="but no manifest.json, which says what was trained; put it back"):
            run(config(folder, optimizer__learning_rate=0.5), store, name)
        assert sorted(path for path in (store.root / name).rglob("*")) == before


def test_lost_checkpoints_are_told_and_a_run_that_never_had_one_begins_anew(store, folder):
    shutil.rmtree(store.root / "stopped" / "checkpoints")
    with pytest.raises(UserError, match="run 'stopped' has lost all its checkpoints"):
        run(config(folder), store, "stopped")
    (store.root / "stopped" / "saved").unlink()  # as if it was killed before its first checkpoint
    (store.root / "stopped" / "metrics.jsonl").unlink()
    run(config(folder), store, "stopped")
    assert_same(store, "stopped")


@pytest.mark.parametrize(
    "order, words",
    [
        ([2], "lacks the rows of epoch 1"),
        ([1, 1, 2], "has epoch 1 more than once"),
        ([2, 1], "has rows out of order"),
        ([2, 2], "lacks the rows of epoch 1 and has epoch 2 more than once"),
    ],
)
def test_rows_that_are_lost_doubled_or_misordered_are_told(order, words, tmp_path, caplog):
    one = Store(tmp_path).run("a")
    for epoch in order:
        one.append_metrics({"epoch": epoch})
    one.cut_metrics(2)
    assert words in caplog.text and [row["epoch"] for row in one.metrics()] == sorted({*order})
    caplog.clear()
    if 1 in order:
        one.cut_metrics(2)
        assert not caplog.text


def test_a_lost_row_that_the_result_needs_ends_the_run_before_it_goes_on(tmp_path):
    one = Store(tmp_path).run("a")
    one.append_metrics({"epoch": 2})
    with pytest.raises(UserError, match="lacks the row of epoch 1, which has scores of the result"):
        one.cut_metrics(2, needed=[1])


# The lock

HOLDER = """
import os, sys, time
from kdjax.store import Store, lock
lock.BEAT = 0.05
if len(sys.argv) > 2:  # another machine, whose file system tells nothing of its locks
    lock.host = lambda: sys.argv[2]
    lock._take = lambda *args: False
with Store(sys.argv[1]).run("a").lock():
    print("locked", flush=True)
    time.sleep(60)
"""


def test_the_lock_holds_when_its_file_is_removed(tmp_path, root):
    with Store(tmp_path).run("a").lock():
        (tmp_path / "a" / "lock").unlink()
        with pytest.raises(UserError, match="another process is training it"), Store(tmp_path).run("a").lock():
            pytest.fail("two hold one run")
        assert Store(tmp_path).run("a").is_locked
    with Store(tmp_path).run("a").lock():
        pass


def test_a_lock_of_another_machine_is_seen_until_it_is_silent(tmp_path, root, monkeypatch, capsys):
    monkeypatch.setattr(lock, "SILENT", 1.0)
    line = [sys.executable, "-c", HOLDER, str(tmp_path), "elsewhere"]
    holder = subprocess.Popen(line, cwd=root, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match="pid .* on elsewhere"), Store(tmp_path).run("a").lock():
            pytest.fail("two hold one run")
        assert Store(tmp_path).run("a").is_locked
    finally:
        holder.kill()
        holder.wait()
    with Store(tmp_path).run("a").lock():  # after it was silent for long enough
        assert "waiting up to 1 s" in capsys.readouterr().err
    assert not Store(tmp_path).run("a").is_locked


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    path = tmp_path / "report.md"
    child = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    dead = tmp_path / f"report.md.{os.uname().nodename}.{int(child.stdout)}.tmp"
    others = [tmp_path / "report.md.elsewhere.1.tmp", tmp_path / f"report.md.{os.uname().nodename}.{os.getppid()}.tmp"]
    for leftover in (dead, *others):
        leftover.write_text("half")
    files.write_atomic(path, "whole")
    assert path.read_text() == "whole" and not dead.exists() and all(other.exists() for other in others)
    one = Store(tmp_path).run("a")
    with one.lock():
        pass
    (one.path / "manifest.json.elsewhere.7.tmp").write_text("half")
    with one.lock():
        assert [path.name for path in one.path.iterdir()] == ["lock"]


def test_folders_and_rows_are_synced_before_a_checkpoint(tmp_path, monkeypatch):
    synced, real = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), real(fd))[1])
    one = Store(tmp_path / "new").run("a/b")
    one.begin({"config": {}})
    one.append_metrics({"epoch": 1})
    one.save_final(1, {"a": np.zeros(2)}, {})
    folders = [str(tmp_path), str(one.path.parent), str(one.path), str(one.path / "checkpoints")]
    assert set(folders) <= set(synced)
    rows = synced.index(str(one.path / "metrics.jsonl"))
    assert rows < next(i for i, name in enumerate(synced) if "1.safetensors" in name)


# Other versions


def test_a_store_of_a_newer_kdjax_says_so(store, folder):
    edit(store.root / "whole" / "manifest.json", lambda value: value.update(format=9, versions={"kdjax": "7.0"}))
    with pytest.raises(UserError, match="format 9, which a newer kdjax wrote, .* use kdjax 7.0 that wrote it"):
        score_run(store, "whole")


@pytest.mark.parametrize("version", sorted(path.stem for path in STORES.glob("*.zip")))
def test_a_store_of_an_earlier_version_opens_scores_and_goes_on(version, tmp_path):
    """A finished teacher, and a student that was stopped in its third epoch, as that version wrote them."""
    shutil.unpack_archive(STORES / f"{version}.zip", tmp_path / "runs")
    store = Store(tmp_path / "runs")
    scores, stored = score_run(store, "teacher"), store.find("teacher").result["last"]
    assert scores["test"]["accuracy"] == pytest.approx(stored["test"]["accuracy"], abs=0.01)
    student = student_config(pathlib.Path("unused"), epochs=3, batch_size=64, eval_batch_size=256)
    student.data.name, student.data.args, student.data.validation = "digits", {}, 0.1
    before = json.loads((store.root / "student" / "manifest.json").read_text())["config"]
    result = run(student, store, "student")
    assert result["last"]["epoch"] == 3 and len(store.find("student").metrics()) == 3
    assert before == json.loads((store.root / "student" / "manifest.json").read_text())["config"]

"""A file of a teacher's outputs teaches as the teacher itself does, and nothing but its own data set's students."""

import json
import pathlib

import numpy as np
import pytest

from kdjax.config_files import load_config
from kdjax.errors import UserError
from kdjax.inspection.outputs import write_outputs
from kdjax.interop.output_files import companion_of, read_outputs
from kdjax.store import Store
from kdjax.training import stored_teachers
from kdjax.training.loop import train, train_together
from kdjax.training.plan import make_plan, resolve

TEACHER = "gaussian/teacher"


@pytest.fixture(scope="module")
def world(tmp_path_factory, one_device) -> pathlib.Path:
    """A folder with a store that has a teacher, and files of the teacher's outputs."""
    folder = tmp_path_factory.mktemp("outputs")
    store = Store(folder / "runs")
    train(load_config("configs/ce_teacher.py:smoke"), store, name=TEACHER, devices=one_device, show=False)
    for path, options in {
        "train.npy": {},
        "all.npy": {"split": "all"},
        "half.npy": {"dtype": "float16"},
        "top.npz": {"top_k": 3},
        "every.npz": {"top_k": 6},
    }.items():
        write_outputs(store, TEACHER, str(folder / path), devices=one_device, **options)
    return folder


def student(teacher: dict, loss: str = "kd", **changes):
    config = load_config("configs/kd_student.py:smoke")
    config.teachers = {"a": teacher}
    config.losses = {"cross_entropy": {"weight": 1.0}, "soft": {"loss": loss, "weight": 1.0}}
    config.update_from_flattened_dict(changes)
    return config


def of_file(world, name: str) -> dict:
    return {"logits": str(world / name)}


def trained(config, store, name: str, devices):
    train(config, store, name=name, devices=devices, show=False)
    return store.find(name).restore_variables("last")[0]["params"]


def assert_equal(a, b, tolerance=0.0) -> None:
    import jax

    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=tolerance, rtol=tolerance), a, b)


@pytest.mark.parametrize("file, resident", [("train.npy", True), ("all.npy", True), ("train.npy", False)])
def test_a_file_teaches_as_its_run_does(file, resident, world, tmp_path, one_device, monkeypatch):
    """A large file is read batch by batch, and must give the same numbers."""
    store = Store(world / "runs")
    by_run = trained(student({"run": TEACHER}), store, "by_run", one_device)
    if not resident:
        monkeypatch.setattr(stored_teachers, "RESIDENT", 0)
    by_file = trained(student(of_file(world, file)), Store(tmp_path), "student", one_device)
    assert_equal(by_run, by_file, 1e-6)


@pytest.mark.parametrize("resident", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_draws_of_a_random_view_teach_as_the_run_does(resident, config, tmp_path, one_device, monkeypatch, caplog):
    """Draw e of a file is what the student of its seed sees in epoch e, so that also a random view loses nothing."""
    store = Store(tmp_path)
    config.model.name, config.model.args = "mlp", {"hidden": (4,)}
    config.losses = {"cross_entropy": {"weight": 1.0}}
    config.teachers = {}
    train(config, store, name="teacher", devices=one_device, show=False)
    config.losses = {"cross_entropy": {"weight": 1.0}, "kd": {"weight": 2.0}}
    config.teachers = {"a": {"run": "teacher"}}
    by_run = trained(config, store, "by_run", one_device)
    path = str(tmp_path / "draws.npy")
    write_outputs(store, "teacher", path, view="crop_flip", visits=3, devices=one_device)
    monkeypatch.setattr(stored_teachers, "RESIDENT", 1 << 20 if resident else 0)
    config.teachers = {"a": {"logits": path}}
    assert_equal(by_run, trained(config, store, "by_file", one_device), 1e-6)
    assert "crop_flip" not in caplog.text  # nothing differs, so nothing is said
    config.epochs = 4  # more than there are draws
    for config.seed in (0, 1):
        make_plan(resolve(config), store, "", one_device)
    assert caplog.text.count("used as they are") == 1


def test_halves_teach_almost_as_floats_do(world, tmp_path, one_device):
    halves, floats = read_outputs(str(world / "half.npy")), read_outputs(str(world / "train.npy"))
    assert halves.logits.dtype == np.float16
    np.testing.assert_allclose(halves.logits, floats.logits, rtol=1e-3, atol=1e-3)
    by_half = trained(student(of_file(world, "half.npy")), Store(tmp_path), "student", one_device)
    by_float = trained(student(of_file(world, "train.npy")), Store(world / "runs"), "by_file", one_device)
    assert_equal(by_half, by_float, 1e-2)


def test_the_top_classes_are_all_classes_where_none_is_left_out(world, tmp_path, one_device):
    store = Store(tmp_path)
    config = student(of_file(world, "train.npy"), "forward_kl")
    by_all = trained(config, store, "all", one_device)
    by_every = trained(student(of_file(world, "every.npz"), "forward_kl"), store, "every", one_device)
    assert_equal(by_all, by_every, 1e-5)
    config = student(of_file(world, "top.npz"), "ttm")
    config.losses.soft.gamma = 0.5
    make_plan(resolve(config), store, "", one_device)
    stored = read_outputs(str(world / "top.npz")).top
    logits = np.asarray(read_outputs(str(world / "train.npy")).logits)
    assert (stored.indices == np.argsort(-logits, axis=-1)[:, :3]).all()


def test_students_of_files_that_share_a_step_are_those_alone(world, tmp_path, one_device):
    names = ("train.npy", "all.npy")
    configs = [student(of_file(world, name), seed=seed) for seed, name in enumerate(names)]
    together, alone = Store(tmp_path / "together"), Store(tmp_path / "alone")
    train_together(configs, together, names=["s0", "s1"], devices=one_device, show=False)
    for seed in (0, 1):
        expected = trained(configs[seed], alone, f"s{seed}", one_device)
        assert_equal(together.find(f"s{seed}").restore_variables("last")[0]["params"], expected, 1e-5)


def saved(folder, array, name="mine.npy") -> dict:
    np.save(folder / name, array)
    return {"logits": str(folder / name)}


def saved_top(folder, indices, log_probs) -> dict:
    np.savez(folder / "mine.npz", indices=indices, log_probs=log_probs)
    return {"logits": str(folder / "mine.npz")}


NOISE = np.random.default_rng(0).normal(size=(256, 6)).astype(np.float32)
BAD = {
    "missing": (lambda w, f: {"logits": str(f / "no.npy")}, {}, "Cannot read"),
    "rows": (lambda w, f: saved(f, NOISE[:-1]), {}, "has 255 rows; .*256 .the training split.*320 .all images but"),
    "classes": (lambda w, f: saved(f, NOISE[:, :5]), {}, "5 classes while the data has 6"),
    "nan": (lambda w, f: saved(f, np.where(NOISE == NOISE[7, 2], np.nan, NOISE)), {}, "in row 7"),
    "probabilities": (lambda w, f: saved(f, np.full((256, 6), 1 / 6)), {}, "has probabilities"),
    "integers": (lambda w, f: saved(f, NOISE.astype(int)), {}, "float16 or float32, not int64"),
    "objects": (lambda w, f: saved(f, np.array([[None]])), {}, "not an .npy file"),
    "text": (lambda w, f: (f / "t.npy").write_text("x" * 99) and {"logits": str(f / "t.npy")}, {}, "not an .npy file"),
    "twice": (
        lambda w, f: saved_top(f, np.zeros((256, 2), int), np.full((256, 2), -2.0)),
        {},
        "one class twice in row 0",
    ),
    "above one": (
        lambda w, f: saved_top(f, np.arange(2) + 0 * NOISE[:, :2].astype(int), NOISE[:, :2]),
        {},
        "at most 1",
    ),
    "class 6": (
        lambda w, f: saved_top(f, np.tile([0, 6], (256, 1)), np.full((256, 2), -2.0)),
        {"losses.soft.loss": "forward_kl"},
        "has class 6",
    ),
    "top-k for dist": (
        lambda w, f: of_file(w, "top.npz"),
        {"losses.soft.loss": "dist"},
        "'dist' needs the teacher's logits of all classes",
    ),
    "tail at 4": (lambda w, f: of_file(w, "top.npz"), {}, "say the mass of all others at temperature 1 alone"),
    "temperature": (
        lambda w, f: {**of_file(w, "top.npz"), "temperature": 2.0},
        {"losses.soft.loss": "forward_kl"},
        "take no temperature",
    ),
    "fitted": (lambda w, f: {**of_file(w, "train.npy"), "temperature": "fitted"}, {}, "write a number"),
    "features": (lambda w, f: of_file(w, "train.npy"), {"losses.soft.loss": "hint"}, "reads more than logits"),
    "classifier": (lambda w, f: of_file(w, "train.npy"), {"model.name": "simkd"}, "which is a file; name a run"),
    "both": (lambda w, f: {**of_file(w, "train.npy"), "run": TEACHER}, {}, "a run and a file of logits"),
    "other data": (lambda w, f: of_file(w, "train.npy"), {"data.args.dim": 9}, "another data set: its images"),
    "other split": (lambda w, f: of_file(w, "train.npy"), {"data.split_seed": 1}, "--split=all writes"),
    "statistics": (lambda w, f: of_file(w, "train.npy"), {"teacher_batch_norm": "batch"}, "no batch statistics"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_does_not_fit_is_refused_in_one_line(case, world, tmp_path, one_device):
    make, changes, words = BAD[case]
    config = student(make(world, tmp_path))
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=words):
        train(config, Store(tmp_path / "runs"), devices=one_device, show=False)


def test_a_replaced_file_is_noticed(world, tmp_path, one_device, door):
    """Beside its old companion, on resuming, by the same command again, and by evaluate."""
    path = tmp_path / "t.npy"
    np.save(path, np.asarray(read_outputs(str(world / "train.npy")).logits))
    store, config = Store(tmp_path / "runs"), student({"logits": str(path)})
    train(config, store, name="s", devices=one_device, show=False)
    np.save(path, NOISE)
    with pytest.raises(UserError, match="the file, of teacher 'a' changed"):
        train(config, store, name="s", devices=one_device, show=False)
    found = door("kdjax.evaluate", "--run=s", f"--store={tmp_path / 'runs'}")
    assert found.returncode == 2 and "of teacher 'a' changed" in found.stderr
    (tmp_path / "runs/s/result.json").unlink()
    with pytest.raises(UserError, match="the file, of teacher 'a' changed"):
        train(config, store, name="s", devices=one_device, show=False)
    companion_of(path).write_text(companion_of(world / "train.npy").read_text())
    with pytest.raises(UserError, match="was replaced since"):
        read_outputs(str(path))
    companion_of(path).write_text(json.dumps({"rows": 3}))
    with pytest.raises(UserError, match="'rows' is 3"):
        read_outputs(str(path))


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--out=a.npz"], "must end in .npy"),
        (["--out=a.npy", "--top_k=2"], "must end in .npz"),
        (["--out=a.npz", "--top_k=7"], "more than the 6 classes"),
        (["--out=a.npy", "--split=tran"], "has no split 'tran'. Did you mean 'train'?"),
        (["--out=a.npy", "--visits=2"], "needs a random --view"),
    ],
)
def test_what_predict_cannot_write_is_told_in_one_line(arguments, words, world, door, tmp_path):
    found = door("kdjax.predict", f"--run={TEACHER}", f"--store={world / 'runs'}", *arguments, cwd=tmp_path)
    assert found.returncode == 2 and words in found.stderr and found.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())

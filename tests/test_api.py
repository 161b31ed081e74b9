"""The Python API: runs trained, listed and loaded in a few lines, equal to what the doors compute."""

import pathlib

import jax
import numpy as np
import pytest

import kdjax
from kdjax.errors import UserError
from kdjax.inspection.predict import load_run, predict_run
from kdjax.store import Store


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    store = tmp_path_factory.mktemp("api") / "runs"
    configs = [kdjax.load_config("configs/mse_teacher.py:smoke", seed=seed) for seed in (0, 1)]
    return store, kdjax.train(configs, store, show=False)


def test_a_loaded_run_gives_the_outputs_of_the_doors_from_stored_images(trained):
    store, results = trained
    name = "gaussian/mlp-mse-smoke-s1"
    teacher, expected = kdjax.load(name, store), predict_run(Store(store), name, "test")
    images = load_run(Store(store), name).dataset.images[expected.rows]
    logits = jax.jit(teacher.logits)(images)
    np.testing.assert_allclose(logits, expected.logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(teacher.probs(images).sum(axis=-1), 1, rtol=1e-6)
    assert teacher.result["last"] == results[1]["last"] and teacher.config.seed == 1
    accuracy = np.mean(np.argmax(logits, axis=-1) == expected.labels)
    assert accuracy == pytest.approx(results[1]["last"]["test"]["accuracy"])


def test_runs_are_listed_and_a_finished_one_is_returned(trained):
    store, results = trained
    assert [run.name for run in kdjax.list_runs(store)] == [f"gaussian/mlp-mse-smoke-s{seed}" for seed in (0, 1)]
    config = kdjax.load_config("configs/mse_teacher.py:smoke", seed=1)
    assert kdjax.train(config, store, show=False)["last"] == results[1]["last"]


def test_a_checkpoint_may_be_a_step_and_numbers_may_be_numpys(trained):
    store, results = trained
    step = results[0]["last"]["step"]
    assert kdjax.load("gaussian/mlp-mse-smoke-s0", store, step).result == results[0]
    config = kdjax.load_config(pathlib.Path("configs/mse_teacher.py"), seed=np.int64(3))
    assert config.seed == 3 and type(config.seed) is int


def test_values_that_are_no_stored_bytes_are_refused(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 3)).astype(np.uint8)
    np.savez(tmp_path / "own.npz", images=images, labels=np.arange(40) % 2)
    fields = {"data.name": "arrays", "data.args": {"path": str(tmp_path / "own.npz")}, "model.args.hidden": (4,)}
    config = kdjax.load_config("configs/mse_teacher.py:smoke", batch_size=8, **fields)
    kdjax.train(config, tmp_path, name="own", show=False)
    model = kdjax.load("own", tmp_path)
    expected = model.logits(images[:2])
    for same in (images[:2].astype(np.float32), images[:2].tolist(), jax.numpy.asarray(images[:2])):
        np.testing.assert_array_equal(model.logits(same), expected)
    for wrong in (images / 255, -images.astype(int), images > 100, images.astype(np.uint16) * 257):
        with pytest.raises(UserError, match="stores bytes, 0 to 255, which the run itself scales"):
            model.logits(wrong)
    for wrong, hint in ((images[0], r"images\[None\]"), (images.transpose(0, 3, 1, 2), r"transpose\(0, 2, 3, 1\)")):
        with pytest.raises(UserError, match=f"are not as the run's data set stores them.*{hint}"):
            model.logits(wrong)
    with pytest.raises(UserError, match="an array of numbers, not str"):
        model.logits("cat.png")
    with pytest.raises(UserError, match=r"images \[0, 4, 4, 3\]"):
        model.logits(images[:0])


def test_mistakes_are_one_line(trained):
    store, _ = trained
    with pytest.raises(UserError, match="smoke-s9"):
        kdjax.load("gaussian/mlp-mse-smoke-s9", store)
    with pytest.raises(UserError, match=r"images \[4, 2\] are not as the run's data set stores them: \['batch', 8\]"):
        kdjax.load("gaussian/mlp-mse-smoke-s0", store).apply(np.zeros((4, 2), np.float32))
    with pytest.raises(UserError, match="2 names for 1 configs"):
        kdjax.train(kdjax.load_config("configs/mse_teacher.py:smoke"), store, name=["a", "b"])
    for wrong in (None, "configs/mse_teacher.py", {"epochs": 1}, [3]):
        with pytest.raises(UserError, match="kdjax.train takes a config, as kdjax.load_config"):
            kdjax.train(wrong, store)
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        kdjax.trian  # noqa: B018

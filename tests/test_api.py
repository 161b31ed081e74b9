"""The Python API: runs trained, listed and loaded in a few lines, equal to what the doors compute."""

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


def test_mistakes_are_one_line(trained):
    store, _ = trained
    with pytest.raises(UserError, match="smoke-s9"):
        kdjax.load("gaussian/mlp-mse-smoke-s9", store)
    with pytest.raises(UserError, match=r"images \[4, 2\] are not as the run's data set stores them: \['batch', 8\]"):
        kdjax.load("gaussian/mlp-mse-smoke-s0", store).apply(np.zeros((4, 2), np.float32))
    with pytest.raises(UserError, match="2 names for 1 configs"):
        kdjax.train(kdjax.load_config("configs/mse_teacher.py:smoke"), store, name=["a", "b"])
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        kdjax.trian  # noqa: B018

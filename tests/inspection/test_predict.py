"""A run's outputs: their order, their scores, and the same values on one and four devices."""

import jax
import numpy as np
import pytest

from kdjax.config import defaults
from kdjax.errors import UserError
from kdjax.inspection.predict import predict_run, score_run
from kdjax.store import Store
from kdjax.training.loop import train


@pytest.fixture(scope="module")
def store(tmp_path_factory, image_file) -> Store:
    config = defaults()
    config.model.name, config.model.args, config.epochs, config.batch_size = "four_layers:FourLayers", {}, 1, 16
    config.losses = {"cross_entropy": {"weight": 1.0}}
    config.data.name, config.data.args, config.data.view = "arrays", {"path": image_file}, "crop_flip"
    store = Store(tmp_path_factory.mktemp("runs"))
    train(config, store, name="one", devices=jax.local_devices()[:1], show=False)
    return store


@pytest.mark.parametrize("view", ["none", "own"])
def test_outputs_do_not_depend_on_the_devices(store, view):
    one, four = (
        predict_run(store, "one", "test", view=view, features=True, devices=jax.local_devices()[:count])
        for count in (1, 4)
    )
    assert one.logits.shape == (24, 4) and one.features.shape == (24, 2, 2, 8) and one.pooled.shape == (24, 8)
    for a, b in zip(one, four, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_the_scores_are_computed_from_the_outputs(store):
    for split in ("train", "validation", "test"):
        outputs = predict_run(store, "one", split, devices=jax.local_devices()[:1])
        accuracy = np.mean(outputs.logits.argmax(axis=1) == outputs.labels)
        assert accuracy == pytest.approx(score_run(store, "one", devices=jax.local_devices()[:1])[split]["accuracy"])
        assert outputs.features is None and outputs.soft.shape == outputs.logits.shape
        assert (np.diff(outputs.rows) > 0).all()


def test_every_visit_has_a_view_of_its_own(store):
    first, again, second = (
        predict_run(store, "one", "test", view="crop_flip", visit=visit, devices=jax.local_devices()[:1]).logits
        for visit in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - second).max() > 1e-3


def test_an_unknown_split_is_refused(store):
    with pytest.raises(UserError, match="has no split 'tset'. Did you mean 'test'"):
        predict_run(store, "one", "tset")

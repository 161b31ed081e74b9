"""A network of flax.nnx trains through a function that wraps it; without one, the message says how to write it."""

import jax
import numpy as np
import pytest
from flax import nnx

import kdjax
from kdjax import models
from kdjax.errors import UserError


class Net(nnx.Module):
    def __init__(self, num_classes, width=5, *, rngs):
        self.hidden = nnx.Linear(8, width, rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.fc = nnx.Linear(width, num_classes, rngs=rngs)

    def __call__(self, images, train=False):
        x = jax.nn.relu(self.norm(self.hidden(images), use_running_average=not train))
        return self.fc(self.dropout(x, deterministic=not train))


class NoTrain(nnx.Module):
    def __init__(self, num_classes, *, rngs):
        self.fc = nnx.Linear(8, num_classes, rngs=rngs)

    def __call__(self, images):
        return self.fc(images)


def net(num_classes, width=5):
    return nnx.bridge.to_linen(Net, num_classes, width=width)


def instance(num_classes):
    return Net(num_classes, rngs=nnx.Rngs(0))


def test_an_nnx_network_trains_and_its_statistics_move(tmp_path):
    config = kdjax.load_config("configs/mse_teacher.py:smoke", epochs=1, **{"model.args": {"width": 6}})
    config.model.name = "test_nnx:net"
    kdjax.train(config, tmp_path, name="nnx", show=False)
    loaded = kdjax.load("nnx", tmp_path)
    before = models.init_variables(loaded.module, (1, 8), seed=0)
    assert before["params"]["hidden"]["kernel"].shape == (8, 6)
    moved = jax.tree.map(lambda a, b: float(np.max(np.abs(a - b))), before, dict(loaded.variables))
    assert moved["batch_stats"]["norm"]["mean"] > 0 and moved["params"]["hidden"]["kernel"] > 0


def test_dropout_is_drawn_in_training_alone():
    module = net(6)
    variables = jax.tree.map(jax.numpy.asarray, models.init_variables(module, (1, 8), seed=0))
    images = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)

    def logits(train, seed=0):
        keys = {"dropout": jax.random.key(seed)}
        return models.call(module, variables, images, train=train, rngs=keys)[0].logits

    assert np.any(logits(True, 0) != logits(True, 1))
    np.testing.assert_array_equal(logits(False, 0), logits(False, 1))


def test_an_nnx_network_need_not_take_train():
    module = nnx.bridge.to_linen(NoTrain, 6)
    variables = models.init_variables(module, (1, 8), seed=0)
    assert models.call(module, variables, np.ones((2, 8)), train=True)[0].logits.shape == (2, 6)


@pytest.mark.parametrize("name", ["test_nnx:Net", "test_nnx:instance"])
def test_an_nnx_module_is_refused_with_the_function_to_write(name):
    with pytest.raises(UserError, match=r"def net\(num_classes\): return nnx.bridge.to_linen\(Net, num_classes\)"):
        models.create_model(name, 6)

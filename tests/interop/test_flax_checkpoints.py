"""Parameters that flax programs saved elsewhere give the outputs that they gave there."""

import pathlib
import types

import flax.linen as nn
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx, serialization

from kdjax.errors import UserError
from kdjax.inspection.exchange import import_flax
from kdjax.interop.flax_checkpoints import open_checkpoint, read_variables
from kdjax.store import Store
from kdjax.training.networks import load_network

NET = """
import flax.linen as nn
from flax import nnx


class Net(nn.Module):
    num_classes: int
    width: int = 5

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Dense(self.width)(images.reshape(images.shape[0], -1))
        return nn.Dense(self.num_classes)(nn.BatchNorm(use_running_average=not train)(nn.relu(x)))


class Other(nnx.Module):
    def __init__(self, num_classes, *, rngs):
        self.hidden, self.norm = nnx.Linear(64, 5, rngs=rngs), nnx.BatchNorm(5, rngs=rngs)
        self.drop, self.fc = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(5, num_classes, rngs=rngs)

    def __call__(self, images, train=False):
        x = self.norm(self.hidden(images.reshape(images.shape[0], -1)), use_running_average=not train)
        return self.fc(self.drop(x, deterministic=not train))


def other(num_classes):
    return nnx.bridge.to_linen(Other, num_classes)
"""
IMAGES = np.random.default_rng(1).normal(size=(3, 64)).astype(np.float32)


@pytest.fixture(scope="module")
def nets(tmp_path_factory):
    """A module with networks of the user's own, whose name no other test uses."""
    import importlib
    import sys

    folder = tmp_path_factory.mktemp("code")
    (folder / "flax_nets.py").write_text(NET)
    sys.path.insert(0, str(folder))
    yield importlib.import_module("flax_nets")
    sys.path.remove(str(folder))


def linen_variables(nets) -> dict:
    variables = jax.tree.map(np.asarray, jax.jit(nets.Net(10).init)(jax.random.key(0), IMAGES))
    rng = np.random.default_rng(2)
    return jax.tree.map(lambda leaf: rng.uniform(0.5, 1, leaf.shape).astype(np.float32), variables)


def save_orbax(path: pathlib.Path, tree) -> str:
    with ocp.StandardCheckpointer() as writer:
        writer.save(path.absolute(), tree)
    return str(path)


def save_steps(path: pathlib.Path, tree) -> str:
    with ocp.CheckpointManager(path.absolute()) as manager:
        for step, scale in ((9, 0.0), (10, 1.0)):
            args = ocp.args.StandardSave(jax.tree.map(lambda leaf, scale=scale: scale * leaf, tree))
            manager.save(step, args=ocp.args.Composite(state=args))
        manager.wait_until_finished()
    return str(path)


def save_msgpack(path: pathlib.Path, tree) -> str:
    path.write_bytes(serialization.msgpack_serialize(tree))
    return str(path)


SAVED = {
    "orbax": lambda path, found: save_orbax(path, found),
    "train state": lambda path, found: save_orbax(
        path, {**found, "step": np.zeros(()), "opt_state": {"0": {"mu": found["params"], "nu": found["params"]}}}
    ),
    "steps": save_steps,
    "msgpack": save_msgpack,
    "inside": lambda path, found: save_msgpack(path, {"epoch": 3, "model": found, "ema": 1}),
}


@pytest.mark.parametrize("form", SAVED)
def test_an_imported_checkpoint_has_the_outputs_of_its_variables(form, nets, tmp_path, one_device):
    found = linen_variables(nets)
    path = SAVED[form](tmp_path / "checkpoint", found)
    store = Store(tmp_path / "runs", ("flax_nets",))
    name, result = import_flax(path, "flax_nets:Net", store, "digits", devices=one_device)
    assert name == "imported/flax_nets.Net-checkpoint" and 0 <= result["last"]["test"]["accuracy"] <= 1
    network = load_network(store.find(name))
    expected = nets.Net(10).apply(found, IMAGES)
    np.testing.assert_array_equal(network.model.apply(network.variables, IMAGES), expected)
    with pytest.raises(UserError, match="names code"):
        load_network(Store(tmp_path / "runs").find(name))


@pytest.mark.parametrize("pure", [True, False])
def test_nnx_state_is_read_without_its_random_streams(pure, nets, tmp_path):
    trained = nets.Other(10, rngs=nnx.Rngs(3))
    trained(IMAGES, train=True)  # moves the statistics
    state = nnx.state(trained)
    path = save_orbax(tmp_path / "nnx", nnx.to_pure_dict(state) if pure else state)
    module = nets.other(10)
    variables = read_variables(open_checkpoint(path), module, (1, 64), path)
    expected = trained(IMAGES, train=False)
    np.testing.assert_allclose(module.apply(variables, IMAGES), expected, rtol=1e-6, atol=1e-6)


def test_parameters_alone_are_enough_without_batch_norm(tmp_path):
    module = nn.Dense(4)
    params = module.init(jax.random.key(0), IMAGES)["params"]
    path = save_msgpack(tmp_path / "params.msgpack", jax.tree.map(np.asarray, params))
    found = read_variables(open_checkpoint(path), module, (1, 64), path)
    np.testing.assert_array_equal(module.apply(found, IMAGES), module.apply({"params": params}, IMAGES))


def changed(found: dict, **leaves) -> dict:
    return {**found, "params": {**found["params"], "Dense_0": {**found["params"]["Dense_0"], **leaves}}}


BAD = {
    "missing": (lambda p, v: save_msgpack(p, {"params": v["params"]}), "missing: batch_stats/BatchNorm_0/mean"),
    "surplus": (lambda p, v: save_orbax(p, changed(v, extra=np.zeros(2))), "surplus: params/Dense_0/extra"),
    "shape": (lambda p, v: save_orbax(p, changed(v, kernel=np.zeros((7, 5)))), r"kernel \(7, 5\) instead of \(64, 5\)"),
    "nan": (lambda p, v: save_msgpack(p, changed(v, bias=np.full(5, np.nan))), "not finite in params/Dense_0/bias"),
    "text": (lambda p, v: p.write_text("{}") and str(p), "neither an orbax folder nor a msgpack file"),
    "none": (lambda p, v: str(p), "cannot read"),
    "empty": (lambda p, v: p.mkdir() or str(p), "has no checkpoint of orbax"),
    "metadata": (lambda p, v: p.mkdir() or (p / "_METADATA").write_text("{") and str(p), "cannot be read"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_told_in_one_line(case, nets, tmp_path):
    make, words = BAD[case]
    path = make(tmp_path / "c", linen_variables(nets))
    with pytest.raises(UserError, match=words) as error:
        read_variables(open_checkpoint(path), nets.Net(10), (1, 64), path)
    assert "\n" not in str(error.value)


def test_chunks_that_are_larger_than_their_leaf_are_refused(nets, tmp_path, monkeypatch):
    """What a checkpoint only claims must not be allocated."""
    path = save_orbax(tmp_path / "c", linen_variables(nets))
    leaf = types.SimpleNamespace(shape=(2,), storage=types.SimpleNamespace(chunk_shape=(10**12,)))
    monkeypatch.setattr(ocp.PyTreeCheckpointer, "metadata", lambda self, item: {"params": {"a": leaf}})
    with pytest.raises(UserError, match="'params/a' .* is stored in chunks of"):
        open_checkpoint(path)

"""A dense layer that reads a flattened map gets PyTorch's order of its inputs, or the network is refused."""

import json
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.errors import UserError
from kdjax.inspection.exchange import export_weights, import_weights
from kdjax.interop import read_weights, write_weights
from kdjax.interop.flattened import flattened_inputs, is_known_to_pool
from kdjax.interop.torch_weights import Images, from_state_dict, match_state_dict
from kdjax.models import create_model
from kdjax.store import Store
from kdjax.training.networks import load_network

NET = """
import flax.linen as nn


class Net(nn.Module):
    num_classes: int
    STEM = "conv"
    TORCH_NAMES = {"mine": ((r"conv", "features.0"), (r"hidden", "classifier.1"), (r"out", "classifier.3"))}

    @nn.compact
    def __call__(self, images):
        x = nn.relu(nn.Conv(5, (3, 3), name="conv")(images))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Dense(6, name="hidden")(nn.relu(x.reshape(x.shape[0], -1))))
        return nn.Dense(self.num_classes, name="out")(x)
"""
IMAGES = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype(np.float32)
RNG = np.random.default_rng(1)
STATE = {
    "features.0.weight": RNG.normal(size=(5, 3, 3, 3)),
    "features.0.bias": RNG.normal(size=5),
    "classifier.1.weight": RNG.normal(size=(6, 80)),
    "classifier.1.bias": RNG.normal(size=6),
    "classifier.3.weight": RNG.normal(size=(4, 6)),
    "classifier.3.bias": RNG.normal(size=4),
}


@pytest.fixture
def name(tmp_path, monkeypatch) -> str:
    (tmp_path / "flat_net.py").write_text(NET)
    monkeypatch.syspath_prepend(tmp_path)
    yield "flat_net:Net"
    sys.modules.pop("flat_net", None)


def in_torchs_order(images: np.ndarray) -> np.ndarray:
    """Returns what the PyTorch network with these weights computes, in NumPy, channels first."""
    x = np.pad(images.transpose(0, 3, 1, 2), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))
    x = np.einsum("bchwij,ocij->bohw", windows, STATE["features.0.weight"]) + STATE["features.0.bias"][:, None, None]
    x = np.maximum(x, 0).reshape(len(x), 5, 4, 2, 4, 2).max((3, 5))
    x = np.maximum(x.reshape(len(x), -1) @ STATE["classifier.1.weight"].T + STATE["classifier.1.bias"], 0)
    return x @ STATE["classifier.3.weight"].T + STATE["classifier.3.bias"]


def test_an_imported_network_that_flattens_has_pytorchs_outputs(name):
    images = Images((1, 8, 8, 3), 4)
    module, state = match_state_dict(name, STATE, images)  # no layer is called 'fc': the data says the classes
    variables = from_state_dict(name, state, images)
    np.testing.assert_allclose(module.apply(variables, IMAGES), in_torchs_order(IMAGES), rtol=1e-4, atol=1e-4)


def test_without_data_it_is_refused_with_what_to_do(name):
    with pytest.raises(UserError, match="If its classifier has another name, name --data"):
        match_state_dict(name, STATE)


@pytest.mark.parametrize("model", ["flat_net:Net", "mlp"])
def test_export_undoes_import(model, name, image_file, tmp_path, one_device):
    """For the two kinds of networks that flatten images; both names come from one data set."""
    state = (
        STATE if model != "mlp" else {"hidden1.weight": RNG.normal(size=(5, 192)), "hidden1.bias": RNG.normal(size=5)}
    )
    if model == "mlp":
        state |= {"fc.weight": RNG.normal(size=(4, 5)), "fc.bias": RNG.normal(size=4)}
    state = {key: leaf.astype(np.float32) for key, leaf in state.items()}
    write_weights(tmp_path / "a.npz", state)
    np.savez(tmp_path / "data.npz", **{k: v for k, v in np.load(image_file).items() if "soft" not in k})
    store, args = Store(tmp_path / "runs", ("flat_net", "flat_data")), {"hidden": (5,)} if model == "mlp" else {}
    (tmp_path / "flat_data.py").write_text(DATA.format(path=tmp_path / "data.npz"))
    options = {"args": args, "data": "flat_data:load", "devices": one_device}
    run, _ = import_weights(str(tmp_path / "a.npz"), model, store, **options)
    export_weights(store, run, str(tmp_path / "b.npz"))
    back = read_weights(tmp_path / "b.npz")
    for key, leaf in state.items():
        np.testing.assert_array_equal(back[key], leaf)
    # A manifest of an older kdjax does not say the shape: then the data does, which is not needed otherwise.
    manifest = store.find(run).path / "manifest.json"
    older = json.loads(manifest.read_text())
    assert older["model"].pop("input_shape") == [8, 8, 3]
    recent = manifest.read_text()
    manifest.write_text(json.dumps(older))
    export_weights(store, run, str(tmp_path / "c.npz"))
    without_data = Store(tmp_path / "runs", ("flat_net",))
    with pytest.raises(UserError, match="--trust=flat_data"):
        export_weights(without_data, run, str(tmp_path / "d.npz"))
    manifest.write_text(recent)
    export_weights(without_data, run, str(tmp_path / "d.npz"))
    for name_of_file in ("c.npz", "d.npz"):
        again = read_weights(tmp_path / name_of_file)
        assert all(np.array_equal(again[key], leaf) for key, leaf in back.items())
    if model == "mlp":
        network = load_network(store.find(run))
        x = np.maximum(
            IMAGES.transpose(0, 3, 1, 2).reshape(3, -1) @ state["hidden1.weight"].T + state["hidden1.bias"], 0
        )
        expected = x @ state["fc.weight"].T + state["fc.bias"]
        found = network.model.apply(network.variables, IMAGES).logits
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


DATA = """
import numpy as np

from kdjax.data import Rows


def load(data_dir):
    found = np.load("{path}")
    images = np.concatenate([found["images"], found["test_images"]])
    labels = np.concatenate([found["labels"], found["test_labels"]])
    return Rows(images, labels, None, 4, num_train=len(found["labels"]))
"""


class Transposed(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.relu(x.transpose(0, 3, 1, 2)).reshape(x.shape[0], -1))


class Pooled(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.Conv(4, (3, 3))(x).mean((1, 2)))


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.BatchNorm(use_running_average=True)(x.reshape(x.shape[0], -1)))


class Joined(nn.Module):
    @nn.compact
    def __call__(self, x):
        flat = x.reshape(x.shape[0], -1)
        return nn.Dense(2)(jnp.concatenate([flat, flat], -1))


class Remade(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.remat(nn.Dense)(2)(jax.jit(lambda y: nn.gelu(y.reshape(y.shape[0], -1)))(x))


def found(module) -> dict:
    return flattened_inputs(module, jax.eval_shape(module.init, jax.random.key(0), IMAGES), (1, 8, 8, 3))


@pytest.mark.parametrize("module, expected", [(Transposed(), []), (Pooled(), []), (Remade(), [(8, 8, 3)])])
def test_only_maps_in_another_order_are_found(module, expected):
    assert list(found(module).values()) == expected


@pytest.mark.parametrize("module, words", [(Normed(), "a number for each of its values"), (Joined(), "'concatenate'")])
def test_what_cannot_be_reordered_is_refused(module, words):
    with pytest.raises(UserError, match=words):
        found(module)


def test_a_network_around_one_of_the_users_own_may_flatten(name):
    around = [create_model("simkd", 4, body=body, width=8, size=2) for body in ("resnet8", name)]
    assert [is_known_to_pool(module) for module in around] == [True, False]

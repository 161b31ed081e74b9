"""Networks and losses that are given as objects: recorded by a name where they have one, else marked and kept here."""

import os
import subprocess
import sys

import flax.linen as nn
import jax
import numpy as np
import pytest
from four_layers import FourLayers

import kdjax
from kdjax import losses, models
from kdjax.errors import UserError
from kdjax.given import with_objects
from kdjax.own_code import source_hashes
from kdjax.store import Store


def sharp(logits, labels, *, alpha: float = 2.0):
    """A loss that can be imported from this module."""
    return losses.cross_entropy(alpha * logits, labels)


class Tiny(nn.Module):
    num_classes: int
    width: int = 4
    activation: object = nn.relu

    @nn.compact
    def __call__(self, images):
        return nn.Dense(self.num_classes)(self.activation(nn.Dense(self.width)(images)))


def smoke(**fields):
    return kdjax.load_config("configs/mse_teacher.py:smoke", epochs=1, **fields)


def local_net():
    class Net(Tiny):
        pass

    return Net


def named(model=None, given_losses=None):
    return with_objects(smoke(), model, given_losses)


@pytest.mark.parametrize(
    "model, name, args",
    [
        (models.MLP(6, hidden=(5,)), "mlp", {"hidden": (5,)}),
        (models.create_model("resnet8x4", 6), "resnet8x4", {}),
        (models.create_model("wrn", 6, depth=16, width=2), "wrn_16_2", {}),
        (Tiny(6, width=3), "test_given:Tiny", {"width": 3}),
        (FourLayers, "four_layers:FourLayers", {}),
        (local_net()(6, width=3), "__main__:Net", {"width": 3}),
        (Tiny(6, activation=nn.gelu), "__main__:Tiny", {}),
        (lambda num_classes: Tiny(num_classes), "__main__:own", {}),
    ],
)
def test_a_network_is_recorded_as_what_makes_it_again(model, name, args):
    config = named(model)
    recorded = {key: value for key, value in config.model.args.to_dict().items() if key != "num_classes"}
    assert (config.model.name, recorded) == (name, args)
    again = models.create_model(config.model.name, 6, dtype=config.model.dtype, **config.model.args)
    assert again == (model if isinstance(model, nn.Module) else model(num_classes=6))


def test_a_sequence_of_layers_trains(tmp_path):
    """It takes anything and passes it to its first layer, which takes no `train`."""
    layers = nn.Sequential([nn.Dense(5), nn.relu, nn.Dense(6)])
    kdjax.train(smoke(), tmp_path, model=layers, name="layers", show=False)
    assert kdjax.load("layers", tmp_path, model=layers).logits(np.zeros((2, 8), np.float32)).shape == (2, 6)


def test_losses_are_recorded_by_name_and_keep_their_weights():
    own = lambda logits, labels: sharp(logits, labels)  # noqa: E731
    config = named(None, {"softmax_mse": losses.softmax_mse, "own": own, "sharp": {"loss": sharp, "alpha": 3.0}})
    before = smoke().losses.softmax_mse.to_dict()
    assert config.losses.to_dict() == {
        "softmax_mse": {**before, "loss": "softmax_mse"},
        "own": {"weight": 1.0, "loss": "__main__:own"},
        "sharp": {"weight": 1.0, "loss": "test_given:sharp", "alpha": 3.0},
    }
    assert named(None, sharp).losses.to_dict() == {"sharp": {"weight": 1.0, "loss": "test_given:sharp"}}
    both = named(lambda num_classes: Tiny(num_classes), {"own": own})
    assert {both.model.name, both.losses.own.loss} == {"__main__:own", "__main__:own_"}


@pytest.fixture(scope="module")
def unnamed(tmp_path_factory):
    """A run of a class and a loss that cannot be imported, and its store."""
    store = tmp_path_factory.mktemp("given") / "runs"
    net = local_net()
    result = kdjax.train(smoke(), store, model=net, losses=lambda logits, labels: sharp(logits, labels), show=False)
    (name,) = Store(store).runs()
    return store, name, net, result


def test_what_cannot_be_imported_trains_and_is_marked(unnamed):
    store, name, net, result = unnamed
    assert name == "gaussian/__main__.Net-mse-smoke-epochs=1-s0"
    assert Store(store).find(name).manifest["cannot_be_rebuilt"] == {
        "config.model.name": "__main__:Net",
        "config.losses.own.loss": "__main__:own",
    }
    loaded = kdjax.load(name, store, model=net)
    logits = jax.jit(loaded.logits)(np.zeros((2, 8), np.float32))
    assert logits.shape == (2, 6) and loaded.result["last"] == result["last"]


def test_a_run_that_cannot_be_rebuilt_needs_its_network_and_cannot_teach(unnamed):
    store, name, net, _ = unnamed
    needs = f"run '{name}' has a network that cannot be imported again, '__main__:Net', .*kdjax.load"
    with pytest.raises(UserError, match=needs):
        kdjax.load(name, store)
    config = kdjax.load_config("configs/kd_student.py:smoke", **{"teachers.a.run": name})
    with pytest.raises(UserError, match=needs):
        kdjax.train(config, store, show=False)
    with pytest.raises(
        UserError, match=r"other weights than model= takes: its .*Dense_0/kernel is \(4, 6\), .* needs \(5, 6\)"
    ):
        kdjax.load(name, store, model=net(6, width=5))
    with pytest.raises(UserError, match="has num_classes=5, and the data has 6|num_classes is not yours to set"):
        kdjax.load(name, store, model=net(5))


def test_another_object_under_the_same_name_is_refused(unnamed):
    store, name, net, result = unnamed
    again = {"model": net, "losses": lambda logits, labels: sharp(logits, labels), "show": False}
    with pytest.raises(UserError, match="other content under the same names: .*__main__:own"):
        kdjax.train(smoke(), store, name=name, **again)


def test_fields_that_are_functions_count_in_the_hash_of_a_module():
    def digest(activation):
        config = named(nn.Sequential([nn.Dense(5), activation, nn.Dense(6)]))
        return source_hashes({"config.model.name": config.model.name})

    assert digest(nn.relu) == digest(nn.relu) != digest(nn.gelu)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"model": 3}, "model= takes a flax.linen module, its class or a function that makes one, not 3"),
        ({"losses": {"kd": 3}}, "losses=: 'kd' must be a function or the name of a loss, not 3"),
        ({"losses": {}}, "losses= takes a function, or a mapping"),
        ({"losses": max}, "loss 'builtins:max' is no function whose arguments Python knows"),
        ({"model": nn.Sequential([nn.relu, nn.Dense(7)])}, "Sequential returns 7 logits, and the data has 6 classes"),
        ({"model": Tiny(6, activation=np.ones(2))}, "model '__main__:Tiny' has a field that has no hash"),
        ({"model": models.MLP(5)}, "num_classes is not yours to set: the data set has it, 6"),
    ],
)
def test_mistakes_are_one_line(given, message, tmp_path):
    with pytest.raises(UserError, match=message):
        kdjax.train(smoke(), tmp_path, show=False, **given)


@pytest.mark.slow
def test_a_script_of_its_own_trains_and_resumes_its_classes(tmp_path, root):
    """`__main__` is another module in each process, so only objects that are given again may be found there."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, flax.linen as nn, numpy as np, kdjax\n"
        "class Net(nn.Module):\n"
        "    num_classes: int\n"
        "    @nn.compact\n"
        "    def __call__(self, images):\n"
        "        return nn.Dense(self.num_classes)(images)\n"
        f"config = kdjax.load_config({str(root / 'configs/mse_teacher.py')!r} + ':smoke', epochs=1)\n"
        "print(kdjax.train(config, 'runs', model=Net, show=False)['seconds'])\n"
        "print(kdjax.load('gaussian/__main__.Net-mse-smoke-s0', 'runs', model=Net).logits(np.zeros((1, 8))).shape)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(root)}
    runs = [
        subprocess.run([sys.executable, script], cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    assert runs[0].stdout == runs[1].stdout and "(1, 6)" in runs[0].stdout

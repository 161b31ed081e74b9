"""Imports of weight files as runs, and exports of the weights of runs."""

import json

import jax
import numpy as np
import pytest

from kdjax import models
from kdjax.errors import UserError
from kdjax.inspection.exchange import export_weights, import_weights
from kdjax.interop import read_weights, write_weights
from kdjax.interop.torch_weights import to_state_dict
from kdjax.store import Store
from kdjax.training.loop import train
from kdjax.training.networks import load_network

ARGS = {"widths": (4, 4, 6, 8)}


@pytest.fixture
def state(image_file):
    """A state dict of a small network with four classes."""
    module = models.create_model("resnet8", 4, **ARGS)
    return to_state_dict(module, models.init_variables(module, (1, 8, 8, 3), 3))


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs")


def test_an_imported_run_has_the_weights_and_records_their_file(state, store, tmp_path):
    write_weights(tmp_path / "teacher v1.npz", state)
    name, result = import_weights(str(tmp_path / "teacher v1.npz"), "resnet8", store, args=ARGS)
    assert name == "imported/resnet8-teacher_v1" and result["last"] == {"epoch": 0, "step": 0}
    manifest = store.find(name).manifest
    assert manifest["imported_from"]["file"] == "teacher v1.npz" and len(manifest["imported_from"]["sha256"]) == 64
    assert manifest["model"]["num_classes"] == 4
    network = load_network(store.find(name))
    jax.tree.map(np.testing.assert_array_equal, to_state_dict(network.model, network.variables), state)
    again, _ = import_weights(str(tmp_path / "teacher v1.npz"), "resnet8", store, args=ARGS)
    assert again == name


@pytest.mark.parametrize("form", ["safetensors", "npz"])
def test_export_then_import_gives_the_same_bits(form, state, store, tmp_path):
    write_weights(tmp_path / "a.npz", state)
    name, _ = import_weights(str(tmp_path / "a.npz"), "resnet8", store, args=ARGS)
    written = export_weights(store, name, str(tmp_path / f"b.{form}"))
    assert written.entries == len(state) and written.step == 0
    back = read_weights(tmp_path / f"b.{form}")
    assert set(back) == set(state)
    for key, value in state.items():
        np.testing.assert_array_equal(back[key], value)


def test_an_imported_run_can_be_a_teacher_and_an_initialization(store, config, one_device, tmp_path):
    module = models.create_model("mlp", 4, hidden=(5,))
    write_weights(tmp_path / "a.npz", to_state_dict(module, models.init_variables(module, (1, 8, 8, 3), 3)))
    name, _ = import_weights(str(tmp_path / "a.npz"), "mlp", store, args={"hidden": (5,)})
    config.model.name, config.model.args, config.epochs = "mlp", {"hidden": (5,)}, 1
    config.teachers = {"a": {"run": name}}
    config.init_from = name
    result = train(config, store, name="student", devices=one_device, show=False)
    assert np.isfinite(result["last"]["test"]["loss"])
    assert store.find("student").manifest["teachers"]["a"]["run"] == name


def test_other_weights_under_the_same_name_are_refused(state, store, tmp_path):
    for scale in (1, 2):
        write_weights(tmp_path / f"{scale}.npz", {key: scale * value for key, value in state.items()})
    import_weights(str(tmp_path / "1.npz"), "resnet8", store, name="a", args=ARGS)
    with pytest.raises(UserError, match="exists with other weights"):
        import_weights(str(tmp_path / "2.npz"), "resnet8", store, name="a", args=ARGS)


def test_weights_that_do_not_fit_are_refused_and_leave_no_files(state, store, tmp_path):
    del state["conv1.weight"]
    write_weights(tmp_path / "a.npz", state)
    with pytest.raises(UserError, match="missing: conv1.weight"):
        import_weights(str(tmp_path / "a.npz"), "resnet8", store, args=ARGS)
    assert not store.root.exists()


def test_the_commands_import_export_and_show(door, tmp_path):
    module = models.create_model("mlp", 10, hidden=(5,))
    variables = models.init_variables(module, (1, 8, 8, 1), 0)
    write_weights(tmp_path / "mlp.safetensors", to_state_dict(module, variables))
    runs, args = f"--store={tmp_path}/runs", json.dumps({"hidden": [5]})
    done = door(
        "kdjax.import_torch",
        f"--file={tmp_path}/mlp.safetensors",
        "--model=mlp",
        f"--args={args}",
        "--data=digits",
        runs,
    )
    assert done.returncode == 0 and "run 'imported/mlp-mlp' is in" in done.stdout, done.stderr
    assert "test" in done.stdout and "%" in done.stdout
    out = tmp_path / "out.npz"
    done = door("kdjax.export", "--run=imported/mlp-mlp", "--format=npz", f"--out={out}", runs)
    assert done.returncode == 0 and "4 tensors of step 0" in done.stdout, done.stderr
    for key, value in to_state_dict(module, variables).items():
        np.testing.assert_array_equal(read_weights(out)[key], value)
    done = door("kdjax.show_model", "--config=configs/kd_student.py:cifar100,resnet56,resnet20")
    assert done.returncode == 0 and "278,324 parameters" in done.stdout and "16x16x32" in done.stdout, done.stderr

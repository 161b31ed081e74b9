"""SSKD: a teacher whose second head is trained on the frozen network, and its student."""

import jax
import numpy as np
import pytest
from small_world import largest_difference, values_of

from configs import student as students
from kdjax import models
from kdjax.data import load_dataset
from kdjax.errors import UserError
from kdjax.interop.torch_weights import from_state_dict, to_state_dict
from kdjax.run_names import default_run_name
from kdjax.store import Store
from kdjax.training.loop import train
from kdjax.training.plan import plan_with, resolve
from kdjax.training.teachers import Teacher

BODY = {"body": "four_layers:FourLayers"}


def contrasted(config, **losses):
    config.model.name, config.model.args, config.losses = "sskd", BODY, losses
    return config


def plan_of(config, num_devices=1):
    config = resolve(config)
    dataset, model = load_dataset(config.data, ""), models.create_model("sskd", 4, **BODY)
    teacher = Teacher(model, models.init_variables(model, (1, 8, 8, 3), 7), 4, "softmax", {}, None)
    return plan_with(config, dataset, {"a": teacher}, tuple(jax.local_devices()[:num_devices]))


def test_the_term_falls_and_the_second_head_learns(config):
    config = contrasted(config, cross_entropy={"weight": 0.0}, sskd={"weight": 1.0})
    config.optimizer.name, config.optimizer.learning_rate = "adamw", 0.003
    plan = plan_of(config)
    state, rows = values_of(plan, 30, "sskd")
    assert np.mean(rows[-6:]) < np.mean(rows[:6])
    assert largest_difference(plan.variables["params"]["projection"], state.params["projection"]) > 1e-2


@pytest.mark.slow
def test_one_device_is_four(config):
    config = contrasted(config, cross_entropy={"weight": 1.0}, kd={"weight": 1.0}, sskd={"weight": 1.0})
    with jax.enable_x64(True):
        one, four = (values_of(plan_of(config, devices), 3, "sskd")[0] for devices in (1, 4))
    assert largest_difference(one.trainable, four.trainable) < 1e-10


@pytest.mark.slow
def test_a_teacher_is_trained_in_two_runs_and_then_teaches(config, one_device, tmp_path):
    store = Store(tmp_path)
    first = config.copy_and_resolve_references()
    first.teachers, first.losses = {}, {"cross_entropy": {"weight": 1.0}}
    first.epochs, first.schedule.milestones = 1, ()
    train(first, store, name="first", devices=one_device, show=False)
    second = contrasted(first.copy_and_resolve_references(), view_cross_entropy={"weight": 1.0})
    second.init_from, second.trainable, second.model.head, second.epochs = "first", "head", "projection", 4
    second.optimizer.name, second.optimizer.learning_rate, second.data.view = "adamw", 0.01, "none"
    train(second, store, name="second", devices=one_device, show=False)
    values = [row["train"]["losses/view_cross_entropy"] for row in store.find("second").metrics()]
    assert values[-1] < values[0]
    before, after = (store.find(name).restore_variables("last")[0] for name in ("first", "second"))
    jax.tree.map(np.testing.assert_array_equal, after["params"]["body"], before["params"])  # its network has stayed
    jax.tree.map(np.testing.assert_array_equal, after["batch_stats"]["body"], before["batch_stats"])
    pupil = contrasted(config, cross_entropy={"weight": 0.1}, kd={"weight": 0.9}, sskd={"weight": 1.0})
    pupil.teachers.a.run, pupil.epochs, pupil.schedule.milestones = "second", 1, ()
    assert np.isfinite(train(pupil, store, name="pupil", devices=one_device, show=False)["last"]["test"]["loss"])


def test_rotated_images_are_rotated_and_the_upright_ones_are_the_output():
    module = models.create_model("sskd", 4, **BODY)
    variables = models.init_variables(module, (1, 8, 8, 3), 0)
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    output, _ = models.call(module, variables, images, train=False)
    turned, _ = models.call(module, variables, np.rot90(images, 1, (1, 2)).copy(), train=False)
    for name in ("rotated", "views"):
        np.testing.assert_allclose(output.features[name][:, 1], turned.features[name][:, 0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(output.features["rotated"][:, 0], output.logits, rtol=1e-6)
    shapes = jax.eval_shape(lambda v, x: models.call(module, v, x, train=True)[0].features["views"], variables, images)
    assert shapes.shape == output.features["views"].shape == (2, 4, 8)
    again = from_state_dict("sskd", to_state_dict(module, variables), **BODY)
    jax.tree.map(np.testing.assert_array_equal, again, variables)


def test_the_configs_name_each_others_runs():
    from configs import ce_teacher, sskd_teacher

    for pair in ("resnet56,resnet20", "vgg13,mobilenetv2_half"):
        teacher, pupil = sskd_teacher.get_config(f"cifar100,{pair}"), students.get_config(f"sskd,{pair}")
        resolve(teacher)
        resolve(pupil)
        assert teacher.init_from == default_run_name(ce_teacher.get_config(f"cifar100,{pair}"))
        assert pupil.teachers.a.run == default_run_name(teacher)
        assert pupil.teachers.a.made_by.endswith(f"sskd_teacher.py:cifar100,{pair} --run={pupil.teachers.a.run}")


def test_vectors_cannot_be_rotated(config):
    module = models.create_model("sskd", 4, body="mlp", body_args={"hidden": (4,)})
    with pytest.raises(UserError, match="a network for sskd reads images"):
        models.variable_shapes(module, (1, 8))

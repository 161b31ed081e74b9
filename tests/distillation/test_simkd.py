"""SimKD: the student keeps its projector and ends in its teacher's classifier, wherever it is used."""

import jax
import numpy as np
import pytest
from small_world import Alone, batches_of, largest_difference

import kdjax
from kdjax import models
from kdjax.data import load_dataset
from kdjax.errors import UserError
from kdjax.inspection.exchange import export_weights
from kdjax.interop.torch_weights import from_state_dict, to_state_dict
from kdjax.interop.weight_files import read_weights
from kdjax.store import Store
from kdjax.training import metrics
from kdjax.training.loop import train
from kdjax.training.plan import plan_with, resolve
from kdjax.training.teachers import Teacher

BODY = {"body": "four_layers:FourLayers"}


@pytest.fixture
def reusing(config):
    """A student of one epoch whose body is as wide as the teacher's stem."""
    config.model.name, config.model.args = "simkd", BODY
    config.losses = {"cross_entropy": {"weight": 0.0}, "simkd": {"weight": 1.0}}
    config.epochs, config.schedule.milestones = 1, ()
    return config


def plan_of(config, num_devices=1, widths=(6, 8, 12), **teacher):
    config = resolve(config)
    dataset = load_dataset(config.data, "")
    model = models.create_model("four_layers:FourLayers", teacher.pop("classes", 4), widths=widths)
    made = Teacher(model, models.init_variables(model, (1, 8, 8, 3), 7), model.num_classes, "softmax", {}, None)
    return plan_with(config, dataset, {"a": made}, tuple(jax.local_devices()[:num_devices]))


def steps(plan, number):
    alone, batches, rows = Alone(plan), batches_of(plan, number), []
    for step in range(number):
        state, sums = alone.step(jax.tree.map(lambda leaf, step=step: leaf[:, step : step + 1], batches))
        rows.append(metrics.means(sums.metrics))
        alone.place(state, metrics.zero_train_sums(plan.spec, plan.numbers))
    return state, rows


def test_the_projector_learns_and_the_teachers_classifier_stays(reusing):
    reusing.optimizer.name, reusing.optimizer.learning_rate = "adamw", 0.003
    plan = plan_of(reusing)
    assert plan.model_args["width"] == 12 and plan.model_args["size"] == 2
    head = plan.teachers["a"].variables["params"]["fc"]
    jax.tree.map(np.testing.assert_array_equal, plan.variables["params"]["fc"], head)
    assert "fc" not in plan.variables["params"]["body"]  # its own classifier is left out
    state, rows = steps(plan, 30)
    first, last = (np.mean([row["losses/simkd"] for row in part]) for part in (rows[:6], rows[-6:]))
    assert last < first
    jax.tree.map(np.testing.assert_array_equal, state.params["fc"], head)  # weight decay has not moved it either
    for part in ("body", "projector_conv2"):
        assert largest_difference(plan.variables["params"][part], state.params[part]) > 1e-3


@pytest.mark.slow
def test_one_device_is_four(reusing):
    with jax.enable_x64(True):
        one, four = (steps(plan_of(reusing, devices), 3)[0] for devices in (1, 4))
    assert largest_difference(one.trainable, four.trainable) < 1e-10


def test_the_teacher_reads_the_projected_map(reusing):
    """Where the projected map is the teacher's own, the student's logits are the teacher's."""
    plan = plan_of(reusing)
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    output, _ = models.call(plan.spec.model, plan.variables, images, train=False)
    kernel, bias = (plan.teachers["a"].variables["params"]["fc"][name] for name in ("kernel", "bias"))
    vectors = np.asarray(output.features["projected"]).mean((1, 2))
    np.testing.assert_allclose(output.logits, vectors @ kernel + bias, rtol=1e-5, atol=1e-6)
    assert list(output.features)[-2:] == ["projected", "projected_preact"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config.model.args.update({"body": "simkd"}), "cannot be simkd itself"),
        (lambda config: config.model.args.update({"width": 7}), r"has a classifier \(7, 4\).*is \(12, 4\)"),
        (lambda config: config.teachers.update({"b": {"run": "x"}}), "of one teacher, not of a, b"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(reusing, change, message):
    with reusing.unlocked():
        change(reusing)
    config = resolve(reusing)
    dataset, model = load_dataset(config.data, ""), models.create_model("four_layers:FourLayers", 4, widths=(6, 8, 12))
    made = Teacher(model, models.init_variables(model, (1, 8, 8, 3), 7), 4, "softmax", {}, None)
    with pytest.raises(UserError, match=message):
        plan_with(config, dataset, dict.fromkeys(config.teachers, made), tuple(jax.local_devices()[:1]))


def test_without_a_teacher_the_width_must_be_named():
    with pytest.raises(UserError, match="takes width and size from its teacher"):
        models.create_model("simkd", 4, **BODY)
    assert models.create_model("simkd", 4, width=8, **BODY).width == 8


def test_the_deployed_network_has_the_projector_everywhere(reusing, tmp_path, one_device):
    """A stored run, loaded, exported, imported again, and the teacher of a student, is the network that was trained."""
    store = Store(tmp_path)
    teacher = reusing.copy_and_resolve_references()
    teacher.model.name, teacher.model.args = "four_layers:FourLayers", {"widths": (6, 8, 12)}
    teacher.losses, teacher.teachers = {"cross_entropy": {"weight": 1.0}}, {}
    train(teacher, store, name="teacher", devices=one_device, show=False)
    reusing.teachers.a.run = "teacher"
    result = train(reusing, store, name="student", devices=one_device, show=False)
    assert train(reusing, store, name="student", devices=one_device, show=False) == result  # a finished run is found

    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3)).astype(np.uint8)
    loaded, taught = (kdjax.load(name, store) for name in ("student", "teacher"))
    jax.tree.map(np.testing.assert_array_equal, loaded.variables["params"]["fc"], taught.variables["params"]["fc"])
    output = loaded.apply(images)
    np.testing.assert_allclose(taught.variables["params"]["fc"]["bias"] + np.asarray(output.pooled)
        @ taught.variables["params"]["fc"]["kernel"], output.logits, rtol=1e-5, atol=1e-6)  # fmt: skip

    file = tmp_path / "student.npz"
    export_weights(store, "student", str(file))
    module = models.create_model("simkd", 4, width=12, size=2, **BODY)
    read = from_state_dict("simkd", read_weights(str(file)), width=12, size=2, **BODY)
    jax.tree.map(np.testing.assert_array_equal, read["params"], dict(loaded.variables["params"]))
    assert {"projector.conv1.weight", "fc.weight"} < set(to_state_dict(module, read))

    pupil = reusing.copy_and_resolve_references()
    pupil.model.name, pupil.model.args = "four_layers:FourLayers", {}
    pupil.losses = {"kd": {"weight": 1.0}, "ickd": {"weight": 1.0, "stages": (("stage3", "projected"),)}}
    pupil.teachers.a.run = "student"
    assert np.isfinite(train(pupil, store, name="pupil", devices=one_device, show=False)["last"]["test"]["loss"])


def test_a_stored_body_of_code_must_be_trusted():
    from kdjax import own_code

    names = own_code.names_in({"model": {"name": "simkd", "args": {"body": "someones:Network"}}})
    assert names == {"config.model.args.body": "someones:Network"}

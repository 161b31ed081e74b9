"""One, two and three teachers: how they are made into one, which view each gets, and which statistics they use."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import enable_x64
from ml_collections import ConfigDict
from small_world import fresh_teacher, largest_difference, start, student_config

from kdjax import analysis, losses, models
from kdjax.data import load_dataset, make_order
from kdjax.distillation.inputs import TeacherOutput
from kdjax.errors import UserError
from kdjax.store import Store
from kdjax.training import forward, parallel, steps
from kdjax.training.batch_loader import BatchLoader
from kdjax.training.loop import train
from kdjax.training.plan import manifest_of, plan_with, resolve
from kdjax.training.spec import StepContext
from kdjax.training.structure import combine
from kdjax.training.teachers import Teacher, check_classes
from kdjax.types import ModelOutput

NAMES = ("a", "b", "c")


def configured(image_file: str, count: int, **changed):
    config = student_config(**changed)
    config.model.name, config.model.args = "mlp", {"hidden": (6,)}  # no BatchNorm, except where a test is about it
    config.data.args, config.data.view = {"path": image_file}, "crop_flip"
    config.losses = {"cross_entropy": {"weight": 0.5}, "kd": {"weight": 0.5, "temperature": 3.0}}
    config.teachers = {name: {"run": name, "weight": 1.0 + i} for i, name in enumerate(NAMES[:count])}
    return config


def make_plan(config, num_devices=1, seeds=(5, 6, 7)):
    config = resolve(config)
    dataset = load_dataset(config.data, "")
    model = models.create_model("mlp", dataset.num_classes, hidden=(10,))
    teachers = {}
    for name, seed in zip(config.teachers, seeds, strict=False):
        variables = models.init_variables(model, (1, *dataset.input_shape), seed)
        teachers[name] = Teacher(model, variables, dataset.num_classes, "softmax", {}, None)
        if config.teacher_batch_norm == "batch":
            teachers[name] = fresh_teacher(dataset, seed)
    return plan_with(config, dataset, teachers, jax.local_devices()[:num_devices])


def first_batch(plan):
    loader = BatchLoader(plan.dataset, make_order(plan.dataset, 8, 0), plan.spec.view, plan.devices, last=1)
    return jax.tree.map(lambda leaf: leaf[:, 0], loader.batches(0, 0, 1))


def taught(plan):
    """Returns the first batch, its views, every teacher's output and the ensemble's."""
    batch = jax.tree.map(lambda leaf: leaf[0], first_batch(plan))

    def teach(numbers, fixed, batch):
        context = StepContext(batch, combine(plan.spec.structure, numbers), plan.spec, None)
        views = forward.make_views(fixed, context)
        teachers = forward.read_teachers(forward.run_networks(fixed, views.images, context), context)
        return views, teachers, forward.ensemble_of(teachers, context)

    return batch, *jax.jit(teach)(plan.numbers, start(plan)[1], batch)


def test_teachers_join_by_logits_and_by_probabilities(image_file):
    shares = np.array([1, 2, 3]) / 6
    for ensemble in ("logits", "probs"):
        _, _, teachers, joined = taught(make_plan(configured(image_file, 3, ensemble=ensemble)))
        logits = np.stack([np.asarray(teachers[name].logits, np.float64) for name in NAMES])
        if ensemble == "logits":
            np.testing.assert_allclose(joined.logits, np.tensordot(shares, logits, 1), rtol=1e-5, atol=1e-5)
        else:
            p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
            np.testing.assert_allclose(np.exp(joined.logits), np.tensordot(shares, p, 1), rtol=1e-5, atol=1e-6)


def test_one_teacher_is_chosen_for_each_example_as_often_as_its_weight_says(image_file):
    plan = make_plan(configured(image_file, 3, ensemble="choice"))
    batch, _, teachers, joined = taught(plan)
    logits = np.stack([np.asarray(teachers[name].logits) for name in NAMES])
    matches = (logits == np.asarray(joined.logits)).all(axis=-1)
    assert (matches.sum(axis=0) == 1).all()
    many = np.zeros((3, 6000, 2), np.float32) + np.arange(3, dtype=np.float32)[:, None, None]
    outputs = {
        name: TeacherOutput(jnp.asarray(many[i]), 1.0 + i, ModelOutput(many[i]), {}) for i, name in enumerate(NAMES)
    }
    wide = batch._replace(index=np.arange(6000, dtype=np.int32), visit=np.zeros(6000, np.int32))
    context = StepContext(wide, combine(plan.spec.structure, plan.numbers), plan.spec, None)
    chosen = np.asarray(forward.ensemble_of(outputs, context).logits)[:, 0].astype(int)
    np.testing.assert_allclose(np.bincount(chosen) / 6000, np.array([1, 2, 3]) / 6, atol=0.03)
    again = np.asarray(forward.ensemble_of(outputs, context).logits)[:, 0]
    np.testing.assert_array_equal(chosen, again)
    later = forward.ensemble_of(outputs, context._replace(batch=wide._replace(visit=wide.visit + 1))).logits
    assert (np.asarray(later)[:, 0] != chosen).mean() > 0.3


@pytest.mark.parametrize("ensemble", ["losses", "logits", "probs", "choice"])
def test_two_equal_teachers_are_one(image_file, ensemble):
    results = []
    for count, seeds in ((1, (5,)), (2, (5, 5))):
        plan = make_plan(configured(image_file, count, ensemble=ensemble), seeds=seeds)
        results.append(one_step(plan))
    assert largest_difference(results[0].params, results[1].params) < 1e-4


def one_step(plan):
    carry, fixed = parallel.replicate(start(plan), plan.devices)
    step = jax.pmap(
        lambda state, fixed, batch: steps.train_step(state, fixed, batch, spec=plan.spec, axis_name="devices"),
        axis_name="devices", in_axes=(None, None, 0), out_axes=None, devices=plan.devices,
    )  # fmt: skip
    return jax.device_get(step(carry[0], fixed, first_batch(plan))[0])


def test_the_mean_of_losses_is_the_papers(image_file):
    """The loss of Guo et al. is the plain mean of the complete losses over all teachers."""
    config = configured(image_file, 3)
    for name in NAMES:
        config.teachers[name].weight = 1.0
    plan = make_plan(config)
    _, views, teachers, joined = taught(plan)
    assert joined is None
    variables = {"params": plan.variables["params"], "batch_stats": plan.variables["batch_stats"]}
    output, _ = models.call(plan.spec.model, variables, views.images["crop_flip"], train=True)
    parts = [losses.kd(output.logits, teachers[name].logits, temperature=3.0).mean() for name in NAMES]
    labels = losses.cross_entropy(output.logits, views.labels).mean()
    expected = np.mean([0.5 * labels + 0.5 * part for part in parts])
    carry, fixed = parallel.replicate(start(plan), plan.devices)
    step = jax.pmap(
        lambda state, fixed, batch: steps.train_step(state, fixed, batch, spec=plan.spec, axis_name="devices"),
        axis_name="devices", in_axes=(None, None, 0), out_axes=None, devices=plan.devices,
    )  # fmt: skip
    total, count = jax.device_get(step(carry[0], fixed, first_batch(plan))[1].metrics["loss"])
    assert total / count == pytest.approx(expected, rel=1e-4)


def test_batch_statistics_in_teachers_are_of_the_global_batch(image_file):
    config = configured(image_file, 1, teacher_batch_norm="batch")
    with enable_x64():
        one, four = (one_step(make_plan(config, count)) for count in (1, 4))
        assert largest_difference(one.params, four.params) < 1e-10
    plan = make_plan(config)
    by_batch = taught(plan)[2]["a"].logits
    running = taught(plan._replace(spec=plan.spec._replace(teacher_batch_norm="running")))[2]["a"].logits
    assert np.abs(by_batch - running).max() > 1e-3


class Dropping(nn.Module):
    """A user's network with dropout."""

    num_classes: int

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Dropout(0.5, deterministic=not train)(x.reshape(len(x), -1))
        return nn.Dense(self.num_classes)(x)


def test_a_teacher_in_training_mode_drops_other_units_in_every_epoch_and_in_evaluation_none(image_file):
    teacher = {"a": fresh_teacher(load_dataset(configured(image_file, 1).data, ""))}
    model = Dropping(4)
    teacher["a"] = teacher["a"]._replace(model=model, variables=models.init_variables(model, (1, 8, 8, 3), 0))
    found = {}
    for statistics in ("batch", "running"):
        config = resolve(configured(image_file, 1, teacher_batch_norm=statistics))
        plan = plan_with(config, load_dataset(config.data, ""), teacher, jax.local_devices()[:1])
        batch, views, *_ = taught(plan)
        fixed, numbers = start(plan)[1], combine(plan.spec.structure, plan.numbers)
        batches = (batch, batch, batch._replace(epoch=batch.epoch + 1))
        contexts = [StepContext(each, numbers, plan.spec, None) for each in batches]
        run = [forward.run_networks(fixed, views.images, context) for context in contexts]
        found[statistics] = [np.asarray(networks["a"].output.logits) for networks in run]
    np.testing.assert_array_equal(*found["batch"][:2])
    assert np.abs(found["batch"][0] - found["batch"][2]).max() > 1e-3
    np.testing.assert_array_equal(found["running"][0], found["running"][2])


def test_a_teachers_own_temperature_and_columns(image_file):
    config = configured(image_file, 2)
    config.teachers.a.temperature, config.teachers.b.classes = 2.0, (3, 0, 1, 2)
    plan = make_plan(config)
    _, _, teachers, _ = taught(plan)
    _, _, plain, _ = taught(make_plan(configured(image_file, 2)))
    np.testing.assert_allclose(teachers["a"].logits, plain["a"].logits / 2, rtol=1e-6)
    np.testing.assert_array_equal(teachers["b"].logits, np.asarray(plain["b"].logits)[:, [3, 0, 1, 2]])


def test_a_fitted_temperature_is_that_of_the_validation_labels_and_is_recorded(image_file):
    config = configured(image_file, 2)
    config.data.validation, config.losses.kd.teacher = 0.25, "a"
    config.teachers.a.temperature, config.teachers.b.classes = "fitted", (3, 0, 1, 2)
    config.teachers.b.temperature = "fitted"
    plan = make_plan(config)
    _, batch, teachers, _ = taught(plan)
    plain_config = configured(image_file, 2)
    plain_config.data.validation = 0.25
    _, _, plain, _ = taught(make_plan(plain_config))
    rows = plan.dataset.splits["validation"]
    found = {}
    for name, columns in (("a", [0, 1, 2, 3]), ("b", [3, 0, 1, 2])):
        teacher = plan.teachers[name]
        images = (plan.dataset.images[rows] / 255 - 0.5) / 0.5
        logits = np.asarray(models.call(teacher.model, teacher.variables, images, train=False)[0].logits)[:, columns]
        found[name] = analysis.fit_temperature(logits, plan.dataset.labels[rows])
        np.testing.assert_allclose(
            teachers[name].logits * found[name], np.asarray(plain[name].logits)[:, columns], 1e-3
        )
    recorded = manifest_of(plan)
    assert recorded["config"]["teachers"]["a"]["temperature"] == "fitted"
    for name, temperature in found.items():
        assert recorded["teachers"][name]["temperature"] == pytest.approx(temperature, abs=1e-3)
    config.data.validation = 0.0
    with pytest.raises(UserError, match="'fitted' needs validation images"):
        make_plan(config)


def test_a_teacher_without_columns_of_its_own_has_those_of_all(image_file):
    config = configured(image_file, 2)
    config.teacher_classes, config.teachers.b.classes = (1, 0, 3, 2), (3, 0, 1, 2)
    plan = make_plan(config)
    _, _, teachers, _ = taught(plan)
    _, _, plain, _ = taught(make_plan(configured(image_file, 2)))
    for name, columns in (("a", [1, 0, 3, 2]), ("b", [3, 0, 1, 2])):
        np.testing.assert_array_equal(teachers[name].logits, np.asarray(plain[name].logits)[:, columns])
    assert plan.config.teachers.a.classes == (1, 0, 3, 2)  # which the manifest keeps


def test_columns_that_a_teacher_does_not_have_are_refused(image_file):
    config = resolve(configured(image_file, 1))
    dataset = load_dataset(config.data, "")
    teachers = {"a": fresh_teacher(dataset)}
    check_classes(config, teachers, 4)
    for classes, words in (
        ((0, 4), "columns from 0 to 3"),
        ((0, 0, 1, 2), "each once, not"),
        ((0, 1), "has 2 classes while the data has 4"),
    ):
        config.teachers.a.classes = classes
        with pytest.raises(UserError, match=words):
            check_classes(config, teachers, 4)
    check_classes(config, teachers, 2)


def test_classes_need_to_agree_only_where_logits_are_compared(image_file):
    config = configured(image_file, 1)
    config.losses = {"cross_entropy": {"weight": 1.0}, "similarity": {"weight": 1.0}}
    teachers = {"a": fresh_teacher(load_dataset(config.data, ""))}
    check_classes(resolve(config), teachers, 2)
    config.diagnostics = True
    with pytest.raises(UserError, match="config.diagnostics compares logits, and teacher 'a' has 4 classes"):
        check_classes(resolve(config), teachers, 2)


@pytest.mark.parametrize(("field", "value"), [("classes", (1, 0, 3, 2)), ("temperature", 2.0)])
def test_branches_that_are_compared_as_they_are_have_no_columns(image_file, field, value):
    config = configured(image_file, 1)
    config.losses = {"cross_entropy": {"weight": 1.0}, "hsakd": {"weight": 1.0}}
    teachers = {"a": fresh_teacher(load_dataset(config.data, ""))}
    check_classes(resolve(config), teachers, 4)
    config.teachers.a[field] = value
    with pytest.raises(UserError, match="config.losses.hsakd compares branches as they are"):
        check_classes(resolve(config), teachers, 4)


def test_as_many_classes_are_not_the_same_classes(image_file):
    config = resolve(configured(image_file, 1))
    teachers = {"a": fresh_teacher(load_dataset(config.data, ""))._replace(class_names=("ant", "bee", "cat", "dog"))}
    check_classes(config, teachers, 4, ("ant", "bee", "cat", "dog"))
    check_classes(config, teachers, 4)  # names are not compared where one side has none
    with pytest.raises(UserError, match="teacher 'a' has 'bee' as class 1, where the data has 'cat'"):
        check_classes(config, teachers, 4, ("ant", "cat", "bee", "dog"))
    config.teachers.a.classes = (0, 2, 1, 3)
    check_classes(config, teachers, 4, ("ant", "cat", "bee", "dog"))


def test_a_teacher_of_images_of_another_size_is_refused(image_file):
    plan = make_plan(configured(image_file, 1))
    model = models.create_model("mlp", 4, hidden=(10,))
    plan.teachers["a"] = plan.teachers["a"]._replace(variables=models.init_variables(model, (1, 5), 0))
    with pytest.raises(UserError, match="teacher 'a' cannot see images of 8x8x3"):
        taught(plan)


def test_a_run_is_not_its_own_teacher(image_file, tmp_path):
    with pytest.raises(UserError, match="config.teachers.a.run: 'a' is this run"):
        train(configured(image_file, 1), Store(tmp_path), name="a", show=False)
    assert not list(tmp_path.iterdir())


def test_a_wrong_view_is_refused_with_its_field(image_file):
    config = configured(image_file, 1)
    config.teachers.a.view = "crops"
    with pytest.raises(UserError, match="config.teachers.a.view 'crops': unknown view 'crops'"):
        make_plan(config)


def test_a_teacher_cannot_mix_where_its_student_does_not(image_file):
    config = configured(image_file, 1)
    config.teachers.a.view = "mixup:1"
    with pytest.raises(UserError, match="config.teachers.a.view 'mixup:1' mixes examples, which config.data.view"):
        make_plan(config)


def test_stages_of_a_loss_that_compares_no_maps_are_refused(image_file):
    config = configured(image_file, 1)
    config.losses.kd.stages = (("stage1", "stage2"),)
    with pytest.raises(UserError, match="config.losses.kd.stages: loss 'kd' compares no maps"):
        resolve(config)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("ensemble", "mean", "'losses', 'logits', 'probs', 'choice' or 'held_out'"),
        ("teacher_batch_norm", "eval", "'running' or"),
    ],
)
def test_a_wrong_word_is_refused(image_file, field, value, words):
    with pytest.raises(UserError, match=words):
        resolve(configured(image_file, 1, **{field: value}))


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("weight", -1.0, "weight must be a number above 0"),
        ("weight", 0.0, "weight must be a number above 0"),
        ("weight", float("inf"), "weight must be a number above 0"),
        ("temperature", float("inf"), "temperature must be a number above 0"),
        ("temperature", float("nan"), "temperature must be a number above 0"),
        ("temperature", "fit", "temperature must be a number above 0 or 'fitted', not 'fit'"),
        ("classes", 3, "classes must be a tuple"),
        ("view", 1, "view must be a str"),
        ("more_labels", "no", "more_labels must be a bool"),
    ],
)
def test_a_teachers_field_out_of_range_is_refused(image_file, field, value, words):
    config = configured(image_file, 2).to_dict()
    config["teachers"]["b"][field] = value
    with pytest.raises(UserError, match=f"config.teachers.b.{words}"):
        resolve(ConfigDict(config))


@pytest.mark.parametrize("ensemble", ["losses", "probs", "choice"])
def test_a_teacher_costs_one_pass_and_no_gradient(image_file, ensemble):
    products = []
    for count in (1, 3):
        plan = make_plan(configured(image_file, count, ensemble=ensemble))
        (state, _), fixed = start(plan)
        step = functools.partial(steps.train_step, spec=plan.spec, axis_name="devices")
        batch = jax.tree.map(lambda leaf: leaf[0], first_batch(plan))
        program = jax.make_jaxpr(step, axis_env=[("devices", 1)])(state, fixed, batch)
        products.append(str(program).count("dot_general"))
    layers = 2  # of every network here; a layer of the student takes one product forward and one or two backward
    assert products == [layers + (3 * layers - 1), 3 * layers + (3 * layers - 1)]


@pytest.mark.parametrize("ensemble", ["losses", "logits", "probs", "choice"])
def test_three_teachers_on_several_devices_are_those_on_one(image_file, ensemble):
    config = configured(image_file, 3, ensemble=ensemble)
    with enable_x64():
        one, two = (one_step(make_plan(config, count)) for count in (1, 2))
        assert largest_difference(one.params, two.params) < 1e-10

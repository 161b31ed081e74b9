"""Every method of the papers' tables learns, gives the same numbers on any devices, and can be added to any other."""

import jax
import numpy as np
import pytest
from four_layers import FourLayers
from ml_collections import ConfigDict
from small_world import Alone, batches_of, largest_difference

from configs import student
from kdjax import models
from kdjax.data import load_dataset
from kdjax.training import metrics
from kdjax.training.plan import plan_with, resolve
from kdjax.training.teachers import Teacher
from tests.data import real_data

# With networks or optimizers of their own, or phases that depend on each other; they have files of their own.
OF_THEIR_OWN = ("alone", "kd_dot", "hsakd", "sskd", "simkd", "kdpp", "wkdl", "vitkd")
METHODS = [method for method in student.METHODS if method not in OF_THEIR_OWN]
WIDER = (6, 8, 12)  # widths of the teacher
EQUAL = (4, 6, 8)  # for methods that compare channels one by one
SAME_CHANNELS = ("fsp", "svd")
# Methods with a warm-up or widths of their own; the others run together, and one by one in the slow tests.
OFTEN = ("ctkd", "fsp", "activation_boundary", "factor_transfer", "svd")
TOGETHER = {
    "plain": ("kd", "ttm", "wttm", "dkd", "dist", "nkd", "attention", "nst", "similarity", "correlation", "rkd", "pkt"),
    "refined": ("wsl", "normkd", "rld", "gkl", "class_gkl", "tekap", "abkd"),
    "adapted": ("hint", "ickd", "srrl", "ofa", "sdd", "catkd", "vid", "review", "ofd", "itrd", "crd"),
}


def random_teacher(widths):
    model = FourLayers(4, widths)
    return Teacher(model, models.init_variables(model, (1, 8, 8, 3), 7), 4, "softmax", {}, None)


def make_plan(config, num_devices, widths=WIDER):
    """Returns a plan whose teacher is a network of four layers with random weights."""
    config = resolve(config)
    dataset = load_dataset(config.data, "")
    return plan_with(config, dataset, {"a": random_teacher(widths)}, tuple(jax.local_devices()[:num_devices]))


def configured(config, *methods):
    """Adds the terms of methods to the config; the learning rate suits their weights, which are for large networks."""
    config.model.name, config.model.args = "four_layers:FourLayers", {}
    terms, warmup = {"cross_entropy": {"weight": 1.0}}, {}
    for method in methods:
        chosen = student.get_config(method)
        terms |= {key: term for key, term in chosen.losses.to_dict().items() if key != "cross_entropy"}
        warmup |= chosen.warmup.losses.to_dict()
        trains = chosen.warmup.trains if len(methods) == 1 else "all"
    for term in terms.values():
        term.pop("ramp_epochs", None)  # the full weight at once
    if "crd" in terms:
        terms["crd"]["negatives"] = 16
    config.losses = terms
    if warmup:
        config.warmup = ConfigDict({**config.warmup.to_dict(), "epochs": 1, "losses": warmup, "trains": trains})
    config.optimizer.learning_rate, config.optimizer.momentum = 0.005, 0.5
    return config


def without_labels(config):
    """Leaves only the methods' own terms, and an optimizer that does not depend on the size of their weights."""
    config.losses["cross_entropy"]["weight"] = 0.0
    config.optimizer.name, config.optimizer.learning_rate = "adamw", 0.003
    return config


def run(plan, spec, num_steps):
    """Makes steps of one phase; returns the state and each step's metrics."""
    alone, batches, rows = Alone(plan, spec), batches_of(plan, num_steps), []
    for step in range(num_steps):
        state, sums = alone.step(jax.tree.map(lambda leaf, step=step: leaf[:, step : step + 1], batches))
        rows.append(metrics.means(sums.metrics))
        alone.place(state, metrics.zero_train_sums(plan.spec, plan.numbers))
    return state, rows


def phases(plan):
    return [spec for spec in (plan.warmup, plan.spec) if spec is not None]


@pytest.mark.parametrize(
    "method", [method if method in OFTEN else pytest.param(method, marks=pytest.mark.slow) for method in METHODS]
)
def test_a_method_lowers_its_own_term(method, config):
    config = without_labels(configured(config, method))
    own = [key for key in config.losses if key != "cross_entropy"]
    plan = make_plan(config, 1, EQUAL if method in SAME_CHANNELS else WIDER)
    for spec in phases(plan):
        terms = [f"losses/{term.key}" for term in spec.terms if term.key in own]
        if not terms:
            continue
        _, rows = run(plan, spec, 30)
        assert all(np.isfinite(list(row.values())).all() for row in rows)
        for term in terms:
            first, last = (np.mean([row[term] for row in part]) for part in (rows[:6], rows[-6:]))
            assert last < first, (spec.phase, term, first, last)


@pytest.mark.parametrize("methods", TOGETHER.values(), ids=TOGETHER)
def test_methods_without_a_warmup_lower_their_terms_together(methods, config):
    """All terms have the same size at the first step; weights are traced, so one compilation serves both plans.

    A term may also fall because the others do, so its adapter must have changed as well.
    """
    config = without_labels(configured(config, *methods))
    plan = make_plan(config, 1)
    _, (first,) = run(plan, plan.spec, 1)
    for method in methods:
        config.losses[method]["weight"] = 1 / abs(first[f"losses/{method}"])
    plan = make_plan(config, 1)
    state, rows = run(plan, plan.spec, 30)
    for method in methods:
        before, after = (np.mean([row[f"losses/{method}"] for row in part]) for part in (rows[:6], rows[-6:]))
        assert after < before, (method, before, after)
    for method, before in plan.distiller["params"].items():
        if jax.tree.leaves(before):  # not all adapters have parameters
            assert largest_difference(before, state.distiller["params"][method]) > 1e-2, method


def test_every_method_is_run_in_one_of_the_two_ways():
    assert {*OFTEN, *sum(TOGETHER.values(), ()), "wttm_crd", "wttm_itrd"} == set(METHODS)


# One method of each kind: an adapter with statistics, gathered vectors, memories, a mean over the batch, margins.
KINDS = ("hint", "rkd", "crd", "dist", "ofd")


def test_a_sum_of_all_kinds_is_the_same_on_one_and_four_devices(config):
    assert_the_same_on_one_and_four_devices(configured(config, *KINDS), ("spec",))


@pytest.mark.slow
def test_all_methods_together_are_the_same_on_one_and_four_devices(config):
    """This also shows that methods can be added to each other."""
    assert_the_same_on_one_and_four_devices(configured(config, *METHODS), ("warmup", "spec"))


def assert_the_same_on_one_and_four_devices(config, names):
    with jax.enable_x64(True):
        for name in names:
            results = []
            for num_devices in (1, 4):
                plan = make_plan(config, num_devices, EQUAL)
                results.append(run(plan, getattr(plan, name), 3))
            (one, one_rows), (four, four_rows) = results
            assert largest_difference(one.trainable, four.trainable) < 1e-10
            assert largest_difference(one.distiller["state"], four.distiller["state"]) < 1e-10
            for a, b in zip(one_rows, four_rows, strict=True):
                for term, value in a.items():
                    assert value == pytest.approx(b[term], rel=1e-9, abs=1e-12), term


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_the_same_on_one_and_four_devices(method, config):
    config = configured(config, method)
    with jax.enable_x64(True):
        widths = EQUAL if method in SAME_CHANNELS else WIDER
        plans = [make_plan(config, num_devices, widths) for num_devices in (1, 4)]
        for one, four in zip(phases(plans[0]), phases(plans[1]), strict=True):
            states = [run(plan, spec, 3)[0] for plan, spec in zip(plans, (one, four), strict=True)]
            assert largest_difference(states[0].trainable, states[1].trainable) < 1e-10


def test_two_teachers_have_an_adapter_each(config):
    config = configured(config, "correlation")
    config.teachers = {"a": {"run": "x"}, "b": {"run": "y", "weight": 3.0}}
    config = resolve(config)
    teachers = {}
    for name, widths in (("a", WIDER), ("b", (5, 7, 9))):
        teachers[name] = random_teacher(widths)
    plan = plan_with(config, load_dataset(config.data, ""), teachers, tuple(jax.local_devices()[:1]))
    assert plan.distiller["params"]["correlation"]["b"]["teacher"]["kernel"].shape == (9, 128)
    state, rows = run(plan, plan.spec, 2)
    assert np.isfinite(rows[-1]["losses/correlation"])
    before, after = plan.distiller["params"]["correlation"]["a"], state.distiller["params"]["correlation"]["a"]
    assert largest_difference(before, after) > 1e-6


def test_adapters_are_drawn_from_seed_and_name_alone(config):
    first = make_plan(configured(config, "correlation"), 1).distiller["params"]["correlation"]["a"]
    again = make_plan(configured(config, "correlation", "vid"), 1).distiller["params"]["correlation"]["a"]
    jax.tree.map(np.testing.assert_array_equal, first, again)
    config.seed = 1
    other = make_plan(configured(config, "correlation"), 1).distiller["params"]["correlation"]["a"]
    assert largest_difference(first, other) > 1e-3
    assert models.count_parameters({"params": first}) == (8 + 1) * 128 + (12 + 1) * 128


def test_the_paraphraser_learns_in_the_warmup_alone(config):
    plan = make_plan(without_labels(configured(config, "factor_transfer")), 1)
    before = plan.distiller["params"]["factor_transfer"]["a"]
    for spec, learns in ((plan.warmup, True), (plan.spec, False)):
        state, _ = run(plan, spec, 2)
        after = state.distiller["params"]["factor_transfer"]["a"]
        assert (largest_difference(before["paraphraser"], after["paraphraser"]) > 0) == learns
        assert (largest_difference(before["translator"], after["translator"]) > 0) == (not learns)
        assert (largest_difference(plan.variables["params"], state.params) > 0) == (not learns)


def test_a_warmup_of_the_body_leaves_the_head(config):
    plan = make_plan(without_labels(configured(config, "fsp")), 1, EQUAL)
    state, _ = run(plan, plan.warmup, 2)
    jax.tree.map(np.testing.assert_array_equal, state.params["fc"], plan.variables["params"]["fc"])
    assert largest_difference(state.params["conv1"], plan.variables["params"]["conv1"]) > 1e-6


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("aux", {"body": "four_layers:FourLayers"}),
        pytest.param("resnet20_aux", {"depth": 8, "widths": (4, 4, 6, 8)}, marks=pytest.mark.slow),
    ],
)
def test_hsakd_teaches_from_a_teacher_that_was_trained_to(name, args, config, one_device, tmp_path):
    from kdjax.store import Store
    from kdjax.training.loop import train

    store = Store(tmp_path)
    config.model.name, config.model.args, config.epochs = name, args, 2
    config.optimizer.learning_rate, config.schedule.milestones = 0.02, ()
    teacher = config.copy_and_resolve_references()
    teacher.teachers = {}
    teacher.losses = {"cross_entropy": {"weight": 1.0}, "auxiliary_cross_entropy": {"weight": 1.0}}
    train(teacher, store, name="teacher", devices=one_device, show=False)
    values = [row["train"]["losses/auxiliary_cross_entropy"] for row in store.find("teacher").metrics()]
    assert values[1] < values[0]
    config.teachers, config.seed = {"a": {"run": "teacher"}}, 1
    config.losses = {"cross_entropy": {"weight": 1.0}, "hsakd": {"weight": 1.0}}
    train(config, store, name="student", devices=one_device, show=False)
    values = [row["train"]["losses/hsakd"] for row in store.find("student").metrics()]
    assert values[1] < values[0]


@pytest.mark.slow
def test_hsakd_on_any_network_is_the_same_on_one_and_four_devices(config):
    config.model.name, config.model.args = "aux", {"body": "four_layers:FourLayers"}
    config.losses = {"cross_entropy": {"weight": 1.0}, "hsakd": {"weight": 1.0}}
    model = models.create_model("aux", 4, **config.model.args.to_dict())
    with jax.enable_x64(True):
        teacher = Teacher(model, models.init_variables(model, (1, 8, 8, 3), 7), 4, "softmax", {}, None)
        states = []
        for devices in (1, 4):
            resolved = resolve(config)
            dataset = load_dataset(resolved.data, "")
            plan = plan_with(resolved, dataset, {"a": teacher}, tuple(jax.local_devices()[:devices]))
            states.append(run(plan, plan.spec, 3)[0])
        assert largest_difference(states[0].trainable, states[1].trainable) < 1e-10


@pytest.fixture(scope="session")
def photographs(tmp_path_factory) -> str:
    """Writes the first 128 test images of CIFAR-10: so few that CRD sees each of them several times."""
    images, labels = real_data.photographs(128)
    path = tmp_path_factory.mktemp("cifar") / "photographs.npz"
    np.savez(path, images=images, labels=labels, test_images=images[:8], test_labels=labels[:8])
    return str(path)


@pytest.fixture(scope="session")
def tiles(tmp_path_factory) -> str:
    """Writes 120 tiles of the two photographs that scikit-learn brings; a class is a fifth of one photograph."""
    from sklearn.datasets import load_sample_images

    images = [
        photograph[32 * row : 32 * row + 32, 128 * fifth + 32 * column :][:, :32]
        for photograph in load_sample_images().images
        for fifth in range(5)
        for row in range(3, 6)
        for column in range(4)
    ]
    labels = np.arange(120) // 12
    path = tmp_path_factory.mktemp("tiles") / "tiles.npz"
    np.savez(path, images=np.stack(images), labels=labels, test_images=images[:8], test_labels=labels[:8])
    return str(path)


def convolutional_pair(config, path, teacher_widths):
    """Returns a plan of narrow resnet14 -> resnet8 on photographs of ten classes, without the labels' term."""
    config.model.name, config.model.args = "resnet8", {"widths": STUDENT_WIDTHS}
    config.data.args, config.data.view = {"path": path}, "crop_flip"
    config.batch_size, config.optimizer.name, config.optimizer.learning_rate = 32, "adamw", 0.003
    config.losses["cross_entropy"]["weight"] = 0.0
    config = resolve(config)
    dataset = load_dataset(config.data, "")
    model = models.create_model("resnet14", 10, widths=teacher_widths)
    variables = models.init_variables(model, (1, 32, 32, 3), 3)
    return plan_with(
        config, dataset, {"a": Teacher(model, variables, 10, "softmax", {}, None)}, tuple(jax.local_devices()[:1])
    )


STUDENT_WIDTHS, TEACHER_WIDTHS = (8, 8, 12, 16), (8, 12, 16, 24)


def test_one_method_of_each_kind_learns_from_photographs(config, tiles):
    """All five in one run, whose terms have the same size at the first step."""
    config = configured(config, *KINDS)
    plan = convolutional_pair(config, tiles, TEACHER_WIDTHS)
    _, (before,) = run(plan, plan.spec, 1)
    for method in KINDS:
        config.losses[method]["weight"] = 1 / abs(before[f"losses/{method}"])
    plan = convolutional_pair(config, tiles, TEACHER_WIDTHS)
    _, rows = run(plan, plan.spec, 30)
    for method in KINDS:
        first, last = (np.mean([row[f"losses/{method}"] for row in part]) for part in (rows[:6], rows[-6:]))
        assert last < first, (method, first, last)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_convolutional_pair_learns_from_photographs(method, config, photographs):
    """In 30 steps of narrow resnet14 -> resnet8, the term's mean over the last steps falls below that of the first."""
    config = configured(config, method)
    plan = convolutional_pair(config, photographs, STUDENT_WIDTHS if method in SAME_CHANNELS else TEACHER_WIDTHS)
    for spec in phases(plan):
        terms = [f"losses/{term.key}" for term in spec.terms if term.key != "cross_entropy"]
        if not terms:
            continue
        _, rows = run(plan, spec, 30)
        for term in terms:
            first, last = (np.mean([row[term] for row in part]) for part in (rows[:6], rows[-6:]))
            assert last < first, (spec.phase, term, first, last)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "term"), [("kdpp", "nd"), ("wkdl", "wkdl")])
def test_a_method_that_gathers_first_learns_from_photographs(method, term, config, photographs):
    """The second phase goes on from what the first one gathered of each class."""
    plan = convolutional_pair(configured(config, method), photographs, STUDENT_WIDTHS)
    gathering, batches = Alone(plan, plan.warmup), batches_of(plan, 30)
    state, _ = gathering.step(jax.tree.map(lambda leaf: leaf[:, :4], batches))
    learning, rows = Alone(plan, plan.spec), []
    for step in range(30):
        learning.place(state, metrics.zero_train_sums(plan.spec, plan.numbers))
        state, sums = learning.step(jax.tree.map(lambda leaf, step=step: leaf[:, step : step + 1], batches))
        rows.append(metrics.means(sums.metrics)[f"losses/{term}"])
    assert np.mean(rows[-6:]) < np.mean(rows[:6]) < 1


# Method -> (teacher's network, its arguments, student's network, its arguments), for methods that need their own.
WRAPPED = {
    "simkd": (
        "resnet14",
        {"widths": TEACHER_WIDTHS},
        "simkd",
        {"body": "resnet8", "body_args": {"widths": STUDENT_WIDTHS}},
    ),
    "sskd": (
        *("sskd", {"body": "resnet14", "body_args": {"widths": TEACHER_WIDTHS}}),
        *("sskd", {"body": "resnet8", "body_args": {"widths": STUDENT_WIDTHS}}),
    ),
    "hsakd": (
        *("aux", {"body": "resnet14", "body_args": {"widths": TEACHER_WIDTHS}}),
        *("aux", {"body": "resnet8", "body_args": {"widths": STUDENT_WIDTHS}}),
    ),
    "vitkd": ("deit_tiny", {"patch": 8, "dim": 24, "depth": 4}, "deit_tiny", {"patch": 8, "dim": 12, "depth": 4}),
    "kd_dot": ("resnet14", {"widths": TEACHER_WIDTHS}, "resnet8", {"widths": STUDENT_WIDTHS}),
}


@pytest.mark.slow
@pytest.mark.parametrize("method", WRAPPED)
def test_methods_with_networks_of_their_own_learn_from_photographs(method, config, photographs):
    name, args, config.model.name, config.model.args = WRAPPED[method]
    config.losses = {method: student.get_config(f"{method},resnet56,resnet20").losses[method].to_dict()}
    config.data.args, config.data.view, config.batch_size = {"path": photographs}, "crop_flip", 32
    if method == "kd_dot":
        config.optimizer.update({"name": "dot", "learning_rate": 0.02})
    else:
        config.optimizer.update({"name": "adamw", "learning_rate": 0.003})
    config = resolve(config)
    model = models.create_model(name, 10, **args)
    teacher = Teacher(model, models.init_variables(model, (1, 32, 32, 3), 3), 10, "softmax", {}, None)
    plan = plan_with(config, load_dataset(config.data, ""), {"a": teacher}, tuple(jax.local_devices()[:1]))
    _, rows = run(plan, plan.spec, 30)
    first, last = (np.mean([row[f"losses/{method}"] for row in part]) for part in (rows[:6], rows[-6:]))
    assert last < first, (first, last)


def test_stages_that_are_not_equally_many_are_paired_by_the_config_alone(config):
    from kdjax.errors import UserError

    config = configured(config, "attention")
    config.model.args = {"widths": (4, 8)}  # two stages, the teacher has three
    with pytest.raises(UserError, match="the maps stage1, stage2, the teacher stage1, stage2, stage3; say which"):
        run(plan := make_plan(config, 1), plan.spec, 1)
    config.losses.attention.stages = (("stage1", "stage1"), ("stage2", "stage3"))
    plan = make_plan(config, 1)
    _, rows = run(plan, plan.spec, 1)
    assert rows[0]["losses/attention"] > 0
    config.losses.attention.stages = (("stage1", "stage4"),)
    with pytest.raises(UserError, match="the teacher has no map 'stage4'. Did you mean 'stage"):
        run(plan := make_plan(config, 1), plan.spec, 1)


def test_a_warmup_spares_the_layers_that_its_losses_do_not_reach(config):
    """Weight decay alone would shrink them."""
    config = configured(config, "activation_boundary")
    config.losses.activation_boundary.stages = ("stage1", "stage2")
    plan = make_plan(config, 1)
    state, _ = run(plan, plan.warmup, 2)
    for layer, trained in (("conv1", True), ("conv2", True), ("conv3", False), ("bn3", False)):
        before, after = plan.variables["params"][layer], state.params[layer]
        assert (largest_difference(before, after) > 0) == trained, layer


def test_transposed_convolutions_are_drawn_as_pytorch_draws_them(config):
    from kdjax.models.initialize import torch_transposed

    drawn = torch_transposed(np.random.default_rng(0), (4, 4, 16, 64), (4, 4, 16, 64))
    assert 0.98 / 32 < np.abs(drawn).max() <= 1 / 32

"""Members of a population are ordinary runs, equal to the runs trained alone."""

import shutil

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from small_world import stop_after, student_config, without_times

from kdjax.config import defaults
from kdjax.errors import Interrupted, RunError, UserError
from kdjax.store import Store
from kdjax.training import forward, population
from kdjax.training.loop import train, train_together
from kdjax.training.together import MAPPED, UNROLLED, VMAP

KD = {"cross_entropy": {"weight": 0.5}, "kd": {"weight": 0.5, "temperature": 4.0}}


def mlp(seed: int, split: int = 0, teacher: str = "", **changed) -> ConfigDict:
    """Returns a run of a second on a small mixture of Gaussians: five epochs of ten steps."""
    config = defaults()
    config.data.name = "gaussian"
    config.data.args = {"classes": 4, "dim": 6, "n_train": 200, "n_test": 40}
    config.data.validation, config.data.split_seed, config.seed = 0.2, split, seed
    config.model.args = {"hidden": (9,)}
    config.batch_size, config.eval_batch_size, config.epochs = 16, 40, 5
    config.schedule.name = "cosine"
    config.losses = {"cross_entropy": {"weight": 1.0}}
    if teacher:
        config.teachers, config.losses = {"a": {"run": teacher}}, KD
    config.update(changed)
    return config


def convolutional(seed: int, losses: dict, order: int = 3, **changed) -> ConfigDict:
    config = student_config(seed=seed, epochs=2, **changed)
    config.losses = losses
    config.teachers.a.run, config.data.order_seed = "teacher", order
    return config


def train_alone(configs, names, store, devices):
    return [train(c, store, name=n, devices=devices, show=False) for c, n in zip(configs, names, strict=True)]


def assert_equal_runs(first: Store, second: Store, names, tolerance: float) -> None:
    for name in names:
        a, b = first.find(name), second.find(name)
        for checkpoint in ("last", "best"):
            pair = [run.restore_variables(checkpoint)[0] for run in (a, b)]
            jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), *pair)
        for one, other in zip(without_times(a.metrics()), without_times(b.metrics()), strict=True):
            assert one["epoch"] == other["epoch"] and one["test"]["accuracy"] == other["test"]["accuracy"]
            assert one["train"]["loss"] == pytest.approx(other["train"]["loss"], rel=1e-4)


@pytest.fixture
def stores(tmp_path):
    return Store(tmp_path / "alone"), Store(tmp_path / "together")


@pytest.mark.parametrize("layout", [VMAP, MAPPED])
def test_stacked_members_with_seeds_splits_teachers_and_numbers_of_their_own_equal_runs_alone(
    stores, one_device, monkeypatch, layout
):
    monkeypatch.setitem(population.LAYOUTS, ("cpu", "narrow"), layout)
    teachers = [mlp(seed, split) for seed, split in ((0, 0), (1, 1))]
    students = [mlp(5, 0, "t0"), mlp(6, 1, "t1"), mlp(5, 1, "t1"), mlp(7, 1, "t1")]
    students[1].losses.kd.temperature, students[2].losses.kd.weight = 2.0, 0.0
    students[3].optimizer.learning_rate = 0.01
    with jax.enable_x64(True):
        for names, configs in ((("t0", "t1"), teachers), (("s0", "s1", "s2", "s3"), students)):
            train_alone(configs, names, stores[0], one_device)
            train_together(configs, stores[1], names=names, devices=one_device, show=False)
            assert_equal_runs(*stores, names, 1e-10)
    recorded = stores[1].find("s2").manifest["population"]
    assert recorded == {"layout": layout, "members": ["s0", "s1", "s2", "s3"]}
    assert "population" not in stores[0].find("s2").manifest


@pytest.fixture
def images(stores, image_file, one_device):
    """Both stores with a convolutional teacher."""
    config = student_config(epochs=1)
    config.teachers, config.losses = {}, {"cross_entropy": {"weight": 1.0}}
    config.data.args = {"path": str(image_file)}
    for store in stores:
        train(config, store, name="teacher", devices=one_device, show=False)
    return {"args": {"path": str(image_file)}}


def test_unrolled_members_differ_in_losses_and_architecture_and_share_one_pass_of_the_teacher(
    stores, images, one_device, monkeypatch
):
    losses = [
        {"cross_entropy": {"weight": 0.1}, "kd": {"weight": 0.9, "temperature": 4.0}},
        {"cross_entropy": {"weight": 1.0}, "ttm": {"weight": 2.0, "gamma": 0.5}},
        {"cross_entropy": {"weight": 1.0}, "attention": {"weight": 5.0}},
    ]
    configs = [convolutional(seed, terms) for seed, terms in enumerate(losses)]
    configs[1].model.name, configs[1].model.args = "mlp", {"hidden": (7,)}
    for config in configs:
        config.data.args, config.data.view = images["args"], "crop_flip"
    names = ("kd", "ttm", "attention")
    with jax.enable_x64(True):
        train_alone(configs, names, stores[0], one_device)
        calls, run = [], forward.run_teacher
        monkeypatch.setattr(
            forward, "run_teacher", lambda name, *rest, **kw: calls.append(name) or run(name, *rest, **kw)
        )
        monkeypatch.setitem(population.LAYOUTS, ("cpu", "narrow"), UNROLLED)
        train_together(configs, stores[1], names=names, devices=one_device, show=False)
    assert stores[1].find("ttm").manifest["population"]["members"] == list(names)
    assert calls == ["a"]  # traced once, for all members and both epochs
    assert_equal_runs(*stores, names, 1e-9)


def test_a_stopped_population_is_resumed_together_or_alone(stores, one_device, monkeypatch):
    """The members share a teacher, whose logits are held once, and each has an order of its own."""
    configs, names = [mlp(seed, 0, "t") for seed in (1, 2, 3)], ("a", "b", "c")
    with jax.enable_x64(True):
        for store in stores:
            train(mlp(0), store, name="t", devices=one_device, show=False)
        train_alone(configs, names, stores[0], one_device)
        with monkeypatch.context() as patch:
            stop_after(2, patch)
            with pytest.raises(Interrupted, match="3 runs were saved at step 20"):
                train_together(configs, stores[1], names=names, devices=one_device, show=False)
        assert stores[1].find("a").result is None
        train(configs[1], stores[1], name="b", devices=one_device, show=False)
        train_together(configs, stores[1], names=names, devices=one_device, show=False)
        assert_equal_runs(*stores, names, 1e-10)
    first = {"until_step": 20, "population": {"layout": VMAP, "members": ["a", "b", "c"]}}
    found = {name: stores[1].find(name).manifest for name in names}
    assert all(found[name]["earlier_populations"] == [first] for name in names)
    assert "population" not in found["b"] and found["c"]["population"]["members"] == ["a", "c"]


def test_a_member_that_diverges_does_not_stop_the_others(stores, one_device, monkeypatch):
    configs, names, finished = [mlp(seed) for seed in (1, 2, 3, 4)], ("a", "b", "c", "d"), []
    configs[1].optimizer.learning_rate = configs[3].optimizer.learning_rate = 1e30
    options = {"names": names, "devices": one_device, "show": False, "finished": finished.append}
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        with pytest.raises(Interrupted, match="2 runs were saved .* run 'b': the loss was not finite .* run 'd': "):
            train_together(configs, stores[1], **options)
    with pytest.raises(RunError, match="run 'b': the loss was not finite .* run 'd': the loss was not finite"):
        train_together(configs, stores[1], **options)
    assert finished == ["a", "c"]
    assert stores[1].find("b").result is None and not stores[1].find("b").steps()
    train_alone(configs[:1], names[:1], stores[0], one_device)
    assert stores[1].find("c").result is not None
    assert stores[1].find("a").result["last"]["test"] == pytest.approx(stores[0].find("a").result["last"]["test"], 1e-4)


def test_order_seed_decides_order_and_views_and_seed_the_weights(image_file, one_device):
    from small_world import make_plan

    plans = []
    for seed, order in ((1, -1), (2, 1), (2, -1)):
        config = student_config(seed=seed)
        config.data.args, config.data.view, config.data.order_seed = {"path": str(image_file)}, "crop_flip", order
        plans.append(make_plan(config, one_device))
    first, shared, other = (population.make_loader(plan).batches(0, 0, 2) for plan in plans)
    np.testing.assert_array_equal(first.index, shared.index)
    assert (first.index != other.index).any()
    assert plans[0].numbers["order_seed"] == plans[1].numbers["order_seed"] == 1
    weights = [plan.variables["params"]["fc"]["kernel"] for plan in plans]
    assert (weights[0] != weights[1]).any() and (weights[1] == weights[2]).all()


def test_cached_logits_are_the_teachers(stores, one_device):
    from kdjax.training.plan import make_plan, resolve
    from kdjax.training.teacher_logits import cached_logits

    train(mlp(0), stores[0], name="t", devices=one_device, show=False)
    plan = make_plan(resolve(mlp(1, 0, "t")), stores[0], "", one_device)
    (logits,) = cached_logits(plan).values()
    rows, teacher = plan.dataset.splits["train"], plan.teachers["a"]
    shown = (plan.dataset.images[rows] * plan.dataset.stored.scale - plan.dataset.stored.mean) / plan.dataset.stored.std
    np.testing.assert_allclose(logits[rows], teacher.model.apply(teacher.variables, shown).logits, rtol=1e-5, atol=1e-5)
    assert not logits[plan.dataset.splits["test"]].any()


@pytest.mark.parametrize(
    "change, cached",
    [
        ({}, True),
        ({"losses": {"cross_entropy": {"weight": 1.0}, "pkt": {"weight": 1.0}}}, False),
        ({"teacher_batch_norm": "batch"}, False),
    ],
)
def test_logits_are_cached_where_nothing_else_of_a_teacher_is_read(stores, one_device, change, cached):
    from kdjax.training.plan import make_plan, resolve

    train(mlp(0), stores[0], name="t", devices=one_device, show=False)
    plan = make_plan(resolve(mlp(1, 0, "t", **change)), stores[0], "", one_device)
    assert plan.spec.teachers[0].cached == cached


def test_wide_networks_are_trained_in_turn_on_cpu(stores, one_device):
    configs = [mlp(seed) for seed in (1, 2)]
    for config in configs:
        config.model.args, config.epochs = {"hidden": (9000,)}, 1
    train_together(configs, stores[0], names=("a", "b"), devices=one_device, show=False)
    assert all("population" not in stores[0].find(name).manifest for name in ("a", "b"))


def test_a_mistake_in_one_of_several_configs_names_its_run(stores, one_device):
    configs = [mlp(1), mlp(2, 0, "nobody")]
    with pytest.raises(UserError, match="run 'b': teacher 'a': .* has no run 'nobody'"):
        train_together(configs, stores[0], names=("a", "b"), devices=one_device, show=False)
    assert not stores[0].runs()


def test_two_configs_of_one_name_are_refused_and_one_config_twice_is_one_run(stores, one_device):
    configs = [mlp(1), mlp(1, epochs=2)]
    with pytest.raises(UserError, match="two of the runs have different configs and one name, 'a'"):
        train_together(configs, stores[0], names=("a", "a"), devices=one_device, show=False)
    first, second = train_together([mlp(1), mlp(1)], stores[0], names=("a", "a"), devices=one_device, show=False)
    assert first == second and stores[0].runs() == ["a"]


def test_members_that_never_saw_different_classes_are_scored_for_their_own(stores, one_device):
    configs = [mlp(1, epochs=2), mlp(1, epochs=2)]
    for hidden, config in enumerate(configs):
        config.data.protocols = {"drop_classes": {"classes": (hidden,)}}
    alone = train_alone(configs, ("a", "b"), stores[0], one_device)
    together = train_together(configs, stores[1], names=("a", "b"), devices=one_device, show=False)
    for one, other in zip(alone, together, strict=True):
        assert one["last"]["test"] == pytest.approx(other["last"]["test"], 1e-4)


def test_a_seed_of_a_study_has_an_order_of_its_own():
    from kdjax.studies.runner import seeded

    config = mlp(1)
    config.data.order_seed = 3
    with pytest.raises(UserError, match="order_seed must be -1"):
        seeded(config, 2)


def two_numbers(logits):
    return logits[:, :2]


def test_a_mistake_that_tracing_finds_names_the_run_that_it_is_in(stores, one_device, monkeypatch):
    monkeypatch.setitem(population.LAYOUTS, ("cpu", "narrow"), UNROLLED)
    configs = [mlp(1), mlp(1)]
    configs[1].losses = {"own": {"loss": f"{__name__}:two_numbers", "weight": 1.0}}
    with pytest.raises(UserError, match=r"run 'b': loss 'own' must return"):
        train_together(configs, stores[0], names=("a", "b"), devices=one_device, show=False)
    assert not stores[0].runs()


def plans_of(configs, devices):
    from small_world import make_plan

    return [make_plan(config, devices) for config in configs]


def test_copies_of_the_same_labels_are_the_same_labels(one_device):
    configs = [mlp(1), mlp(2), mlp(3)]
    for seed, config in zip((0, 0, 1), configs, strict=True):
        config.data.protocols = {"label_noise": {"rate": 0.4, "seed": seed}}
    plans = plans_of(configs, one_device)
    assert plans[0].dataset.labels is not plans[1].dataset.labels
    groups = population.group_plans(plans, (0, 0, 0))
    assert groups == [[0, 1], [2]] and "differ in: labels" in population.why_apart(plans, groups)


def test_streams_are_shared_or_apart(one_device):
    import dataclasses

    configs = [mlp(1), mlp(2), mlp(3), mlp(4)]
    for config, order in zip(configs, (5, 5, 6, 5), strict=True):
        config.data.order_seed = order
    plans = plans_of(configs, one_device)
    assert population.group_plans(plans, (0,) * 4) == [[0, 1, 2, 3]]
    read = [dataclasses.replace(plan.dataset, streamed=True, skip_bad=plan.config.seed == 4) for plan in plans]
    plans = [plan._replace(dataset=dataset) for plan, dataset in zip(plans, read, strict=True)]
    assert population.group_plans(plans, (0,) * 4) == [[0, 1], [2], [3]]


def test_a_population_has_room_for_its_largest_member(image_file, one_device, monkeypatch):
    configs = [convolutional(seed, {"cross_entropy": {"weight": 1.0}}) for seed in range(3)]
    for config in configs:
        config.data.args, config.teachers = {"path": image_file}, {}
    configs[2].model.name = "resnet8"
    plans = plans_of(configs, one_device)
    small, large = (population._member_bytes(plans[i]) for i in (0, 2))
    outputs = 8 * 8 * 8 * 16 * 4  # of one layer of resnet8, in bytes
    assert large > small + outputs
    monkeypatch.setattr(population.parallel, "memory", lambda devices: 2.5 * large / population.PART_OF_MEMORY)
    groups = population.group_plans(plans, (0, 0, 0))
    assert groups == [[0, 1], [2]] and "too large" in population.why_apart(plans, groups)


def test_what_a_killed_process_left_beside_its_last_checkpoint_is_deleted(stores, one_device):
    result = train(mlp(1), stores[0], name="a", devices=one_device, show=False)
    run = stores[0].find("a")
    (run.path / "result.json").unlink()
    before = stores[1].run("before")
    before.save(10, {"train": run.restore_variables("last")[0]}, {"best": None})
    before.close()
    shutil.copytree(before.path / "checkpoints" / "10", run.path / "checkpoints" / "10")
    (run.path / "checkpoints" / "20.orbax-checkpoint-tmp").mkdir()
    again = train(mlp(1), stores[0], name="a", devices=one_device, show=False)
    assert again == result
    names = [path.name for path in (run.path / "checkpoints").iterdir()]
    assert names and all(name.endswith(".safetensors") for name in names)


def test_a_study_says_which_runs_share_a_step(stores, one_device):
    said = []
    configs = [mlp(1, epochs=1), mlp(2, epochs=1), mlp(3, epochs=2)]
    names = ("a", "b", "c")
    train_together(configs, stores[0], names=names, devices=one_device, show=False, say=said.append)
    assert said[0].startswith("3 runs are trained in 2 parts, since they differ in: batch size, epochs,")
    assert said[1].startswith("2 runs are trained in one step (vmap), about") and len(said) == 2

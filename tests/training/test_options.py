"""Options of a run: precision, optimizers, schedules of evaluation, soft targets, sinks."""

import jax
import numpy as np
import pytest
from small_world import largest_difference, make_plan, run_steps

from configs import alone_student, ce_teacher
from kdjax.errors import UserError
from kdjax.store import Store
from kdjax.training.loop import train


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "runs")


@pytest.mark.parametrize(
    "changed",
    [
        {"optimizer.name": "adamw", "optimizer.learning_rate": 1e-3},
        {"optimizer.nesterov": True, "optimizer.decay": "kernels"},
        {"schedule.name": "cosine", "schedule.warmup_epochs": 1},
        {"data.targets": "soft", "model.dtype": "bfloat16"},
        {"select": "last", "eval_every": 2, "epochs": 3},
    ],
)
def test_a_run_with(changed, store, one_device):
    config = alone_student.get_config("smoke")
    config.update_from_flattened_dict(changed)
    result = train(config, store, devices=one_device, show=False)
    run = store.find(store.runs()[0])
    rows = run.metrics()
    assert np.isfinite(result["last"]["test"]["loss"])
    assert rows[-1]["train"]["loss"] < 1.1 * rows[0]["train"]["loss"]
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(run.restore_variables("last")[0]))
    if config.eval_every == 2:
        assert ["test" in row for row in rows] == [False, True, True]


def test_weight_decay_on_kernels_leaves_biases_alone(store, one_device):
    """With a large decay and no gradient, kernels shrink and biases stay as they are."""
    weights = {}
    for decay in ("kernels", "all"):
        config = alone_student.get_config("smoke")
        config.epochs, config.optimizer.decay, config.optimizer.weight_decay = 1, decay, 1.0
        config.losses = {"cross_entropy": {"weight": 0.0}}
        config.optimizer.learning_rate, config.optimizer.momentum = 0.1, 0.0
        train(config, store, name=decay, devices=one_device, show=False)
        weights[decay] = store.find(decay).restore_variables("last")[0]["params"]["fc"]
    start = make_plan(config, one_device).variables["params"]["fc"]
    shrunk = 0.9**4
    np.testing.assert_allclose(weights["all"]["bias"], shrunk * start["bias"], rtol=1e-5)
    np.testing.assert_allclose(weights["kernels"]["bias"], start["bias"], rtol=1e-6)
    np.testing.assert_allclose(weights["kernels"]["kernel"], shrunk * start["kernel"], rtol=1e-5)


def test_soft_targets_are_what_label_losses_see(store, one_device):
    """The cross-entropy to p* differs from that to the labels."""
    rows = {}
    for targets in ("labels", "soft"):
        config = ce_teacher.get_config("smoke")
        config.epochs, config.data.targets = 1, targets
        train(config, store, name=targets, devices=one_device, show=False)
        rows[targets] = store.find(targets).metrics()[0]["train"]
    assert rows["labels"]["loss"] != pytest.approx(rows["soft"]["loss"], rel=1e-3)


def test_per_device_batch_statistics_differ_from_global_ones(config):
    plans = {}
    for scope in ("global", "per_device"):
        config.model.batch_norm = scope
        plans[scope] = run_steps(config, 2, 1)[0].batch_stats
    assert largest_difference(plans["global"], plans["per_device"]) > 1e-3


def test_one_spec_is_compiled_once_for_runs_that_differ_in_numbers_only(store, one_device, monkeypatch):
    from kdjax.training import together

    traced = []
    step = together.population_step
    monkeypatch.setattr(together, "population_step", lambda *args, **kwargs: traced.append(1) or step(*args, **kwargs))
    for seed, rate in ((0, 0.0123), (1, 0.0234), (2, 0.0345)):
        config = alone_student.get_config("smoke")
        config.epochs, config.batch_size, config.seed, config.optimizer.learning_rate = 1, 20, seed, rate
        train(config, store, name=f"s{seed}", devices=one_device, show=False)
    assert len(traced) == 1


def test_tensorboard_is_an_optional_sink(store, one_device, monkeypatch):
    from kdjax.training import sinks

    monkeypatch.setitem(__import__("sys").modules, "tensorboardX", None)
    with pytest.raises(UserError, match=r"pip install 'kdjax\[tensorboard\]'"):
        sinks.make_sink(["tensorboard"])
    monkeypatch.undo()
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    train(
        alone_student.get_config("smoke"),
        store,
        name="t",
        devices=one_device,
        show=False,
        sink=sinks.make_sink(["tensorboard"]),
    )
    assert list((store.root / "t" / "tensorboard").glob("events*"))


def test_wandb_is_an_optional_sink(store, one_device, monkeypatch):
    from kdjax.training import sinks

    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install 'kdjax\[wandb\]'"):
        sinks.make_sink(["wandb"])


@pytest.mark.slow
def test_wandb_keeps_the_rows_of_a_run_offline(store, one_device, monkeypatch):
    from kdjax.training import sinks

    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    logged = []
    log = wandb.Run.log
    monkeypatch.setattr(wandb.Run, "log", lambda run, row, **rest: (logged.append(row), log(run, row, **rest)))
    train(
        alone_student.get_config("smoke"),
        store,
        name="w",
        devices=one_device,
        show=False,
        sink=sinks.make_sink(["wandb"]),
    )
    wandb.teardown()
    rows = store.run("w").metrics()
    assert [row["test/accuracy"] for row in logged] == [row["test"]["accuracy"] for row in rows]
    assert list((store.root / "w").glob("wandb/offline-run-*/*.wandb"))


def test_a_mistake_found_in_the_first_step_is_one_line_and_leaves_no_run(store, one_device):
    """A run that was never trained must not refuse a corrected config."""
    from configs import tolerant_teacher

    config = tolerant_teacher.get_config("smoke")
    config.epochs, config.losses.tolerant.num_top = 1, 7
    with pytest.raises(UserError, match=r"config.losses.tolerant: num_top=7 is above the 6 classes"):
        train(config, store, name="x", devices=one_device, show=False)
    assert not store.runs()
    config.losses.tolerant.num_top = 5
    train(config, store, name="x", devices=one_device, show=False)
    assert store.runs() == ["x"]

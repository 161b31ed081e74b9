"""--cpu_devices=auto: a run takes as many devices as are worth it, and one where their number would change it."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from small_world import make_plan, student_config

from configs import alone_student
from kdjax import models
from kdjax.models.describe import describe
from kdjax.store import Store
from kdjax.training import device_choice
from kdjax.training.loop import train


class Dropping(nn.Module):
    """A network that draws from the dropout stream."""

    num_classes: int

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Dropout(0.5, deterministic=not train)(x.reshape(len(x), -1))
        return nn.Dense(self.num_classes)(x)


@pytest.fixture
def alone(image_file):
    config = student_config()
    config.teachers, config.losses = {}, {"cross_entropy": {"weight": 1.0}}
    config.data.args = {"path": image_file}
    return config


def choose(config, count=4):
    devices = jax.devices()
    return len(device_choice.suited_devices(make_plan(config, devices[:1]), devices[:count]))


@pytest.mark.parametrize("sizes, count, chosen", [((8, 8), 4, 4), ((6, 8), 4, 2), ((6, 9), 4, 3), ((5, 8), 4, 1)])
def test_the_largest_count_that_divides_both_batch_sizes(alone, monkeypatch, sizes, count, chosen):
    monkeypatch.setattr(device_choice, "LEAST_WORK", 1.0)
    alone.batch_size, alone.eval_batch_size = sizes
    assert choose(alone, count) == chosen


def test_each_device_has_enough_to_do(alone, monkeypatch):
    work = device_choice.step_work(make_plan(alone, jax.devices()[:1]))
    for shares, chosen in ((1.5, 1), (2.5, 2), (4.5, 4)):
        monkeypatch.setattr(device_choice, "LEAST_WORK", work / shares)
        assert choose(alone) == chosen


@pytest.mark.parametrize("changed", [{"batch_norm": "per_device"}, {"name": "test_device_choice:Dropping"}])
def test_one_device_where_their_number_would_change_the_run(alone, monkeypatch, changed):
    monkeypatch.setattr(device_choice, "LEAST_WORK", 1.0)
    alone.model.update(changed)
    assert choose(alone) == 1


@pytest.mark.parametrize("name, shape", [("resnet20", (32, 32, 3)), ("mobilenetv2_half", (32, 32, 3)), ("mlp", (64,))])
def test_work_is_what_xla_counts(name, shape):
    """XLA counts a multiply-add as two operations, and also those between the layers."""
    model = models.create_model(name, 10)
    variables = models.init_variables(model, (1, *shape), 0)
    counted = describe(model, shape).flops / 2
    assert device_choice._forward_work(model, variables, shape) == pytest.approx(counted, rel=0.12)


def test_the_work_of_a_step_is_three_passes_of_the_student_and_one_of_the_teacher(config):
    with_teacher = make_plan(config, jax.devices()[:1])
    config.teachers, config.losses = {}, {"cross_entropy": {"weight": 1.0}}
    alone = device_choice.step_work(make_plan(config, jax.devices()[:1]))
    assert device_choice.step_work(with_teacher) == pytest.approx(alone * 4 / 3)  # both have the same network


@pytest.mark.parametrize("scope, warned", [("per_device", True), ("global", False)])
def test_a_run_that_depends_on_its_devices_warns_on_another_number(alone, tmp_path, caplog, scope, warned):
    alone.model.batch_norm, alone.epochs = scope, 1
    train(alone, Store(tmp_path), name="run", devices=jax.devices()[:2], show=False)
    assert Store(tmp_path).find("run").manifest["devices"] == 2
    (tmp_path / "run" / "result.json").unlink()
    for devices in (2, 4):
        caplog.clear()
        train(alone, Store(tmp_path), name="run", devices=jax.devices()[:devices], show=False)
        (tmp_path / "run" / "result.json").unlink()
        assert ("another number of devices (2, now 4)" in caplog.text) == (warned and devices == 4)


def test_the_loop_takes_what_is_chosen_and_the_api_all(tmp_path):
    config = alone_student.get_config("smoke")
    config.epochs = 1
    for name, choice in (("chosen", True), ("all", False)):
        train(config, Store(tmp_path), name=name, show=False, choose_devices=choice)
    counts = [Store(tmp_path).find(name).manifest["devices"] for name in ("chosen", "all")]
    assert counts == [1, len(jax.devices())]
    scores = [Store(tmp_path).find(name).result["last"]["test"]["loss"] for name in ("chosen", "all")]
    np.testing.assert_allclose(*scores, rtol=1e-4)


@pytest.mark.parametrize("value", ["0", "three", "-1", "1.5"])
def test_a_count_that_is_none_is_one_line(door, value):
    done = door("kdjax.train_teacher", "--config=configs/ce_teacher.py:smoke", f"--cpu_devices={value}")
    assert done.returncode == 2 and f"--cpu_devices={value}: it is a number from 1, or 'auto'." in done.stderr
    assert "Traceback" not in done.stderr

"""Schedules of the learning rate and of the weights of losses."""

import numpy as np
import pytest

from kdjax.distillation import weight_schedules
from kdjax.errors import UserError
from kdjax.training.schedules import find_schedule
from kdjax.training.state import rate_at

STEP = {"name": "step", "milestones": (150, 180, 210), "factor": 0.1, "warmup_epochs": 0, "args": {}}


def rate(epoch, steps_per_epoch=781, **changed):
    config = {"optimizer": {"learning_rate": 0.05}, "schedule": {**STEP, **changed}, "epochs": 240}
    return float(rate_at(np.int32(round(epoch * steps_per_epoch)), config, steps_per_epoch))


@pytest.mark.parametrize("milestone, before, after", [(150, 0.05, 0.005), (180, 0.005, 5e-4), (210, 5e-4, 5e-5)])
def test_drops_take_effect_on_the_first_step_of_epochs_151_181_211(milestone, before, after):
    assert rate(milestone - 1 / 781) == pytest.approx(before, rel=1e-5)
    assert rate(milestone) == pytest.approx(after, rel=1e-5)


def test_cosine_ends_at_zero_and_is_half_in_the_middle():
    assert rate(0, name="cosine") == pytest.approx(0.05)
    assert rate(120, name="cosine") == pytest.approx(0.025, rel=1e-4)
    assert rate(240, name="cosine") == pytest.approx(0.0, abs=1e-8)


def test_warmup_rises_linearly_from_zero():
    rates = [rate(epoch, warmup_epochs=4, name="constant") for epoch in (0, 1, 2, 4, 5)]
    np.testing.assert_allclose(rates, [0, 0.0125, 0.025, 0.05, 0.05], rtol=1e-5)


def test_a_schedule_of_ones_own_gets_the_arguments_it_names():
    changed = {"name": "tests_own_schedule:half_after", "args": {"epoch_of_drop": 3}}
    import sys
    import types

    module = types.ModuleType("tests_own_schedule")
    module.half_after = lambda epoch, *, epoch_of_drop, epochs: 1.0 - 0.5 * (epoch >= epoch_of_drop)
    sys.modules["tests_own_schedule"] = module
    assert rate(2.5, **changed) == pytest.approx(0.05)
    assert rate(3, **changed) == pytest.approx(0.025)


def test_an_argument_that_a_schedule_does_not_take_is_refused():
    with pytest.raises(UserError, match="schedule 'step_early' takes no 'rmp'. Did you mean 'ramp'"):
        find_schedule("step_early", ["rmp"])
    assert find_schedule("step_early", ["ramp"]).parameters == ("milestones", "factor", "ramp")


def at(value, epochs):
    resolved = weight_schedules.resolve_weight(value, "config.losses.kd.weight")
    schedule = weight_schedules.schedule_of(resolved)
    return [float(weight_schedules.weight(resolved, schedule, epoch)) for epoch in epochs]


def test_weights_over_epochs():
    assert at(2, [0, 9]) == [2.0, 2.0]
    assert at({"schedule": "constant", "value": 3}, [5]) == [3.0]
    assert at({"schedule": "warmup", "value": 2.0, "epochs": 4}, [0, 1, 3, 9]) == [0.5, 1.0, 2.0, 2.0]
    assert at({"schedule": "linear", "start": 1.0, "end": 0.0, "last": 10}, [0, 5, 10, 20]) == [1.0, 0.5, 0.0, 0.0]
    cosine = at({"schedule": "cosine", "start": 0.0, "end": 1.0, "first": 2, "last": 6}, [0, 2, 3, 4, 6, 7])
    np.testing.assert_allclose(cosine, [0, 0, (1 - np.cos(np.pi / 4)) / 2, 0.5, 1, 1], atol=1e-6)


@pytest.mark.parametrize(
    "value, words",
    [
        ("heavy", "must be a number of at most 1e38"),
        (float("nan"), "must be a number of at most 1e38"),
        ({"schedule": "warmpu", "value": 1.0}, "Did you mean 'warmup'"),
        ({"schedule": "warmup", "value": 1.0, "epoch": 4}, "Did you mean 'epochs'"),
        ({"schedule": "linear", "start": 1.0, "last": 3}, "needs 'end'"),
    ],
)
def test_a_wrong_weight_is_refused_with_the_nearest_right_one(value, words):
    with pytest.raises(UserError, match=words):
        weight_schedules.resolve_weight(value, "config.losses.kd.weight")

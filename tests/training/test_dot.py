"""DOT: two momenta on the same parameters."""

import jax
import numpy as np
import optax
import pytest
from small_world import largest_difference, make_plan, run_steps

from kdjax.errors import UserError
from kdjax.training.dot import Streams, dot
from kdjax.training.plan import resolve


@pytest.fixture
def dotted(config):
    config.optimizer.name = "dot"
    return config


def test_two_momenta_as_numpy_has_them():
    rng = np.random.default_rng(0)
    params = {"model": {"w": rng.normal(size=3)}, "distiller": {"d": rng.normal(size=2)}}
    task, taught = (
        {"model": {"w": rng.normal(size=(4, 3))}, "distiller": {"d": part * rng.normal(size=(4, 2))}} for part in (0, 1)
    )
    with jax.enable_x64(True):
        made = dot(0.9, 0.075, optax.add_decayed_weights(0.01))
        state, w, d = made.init(params), params["model"]["w"].copy(), params["distiller"]["d"].copy()
        v_task, v_taught, v_own = np.zeros(3), np.zeros(3), np.zeros(2)
        for step in range(4):
            gradients = Streams(*(jax.tree.map(lambda g, step=step: g[step], g) for g in (task, taught)))
            updates, state = made.update(gradients, state, params)
            params = jax.tree.map(lambda p, u: p - 0.1 * u, params, updates)
            v_task = 0.825 * v_task + task["model"]["w"][step] + 0.01 * w
            v_taught = 0.975 * v_taught + taught["model"]["w"][step]
            v_own = 0.9 * v_own + taught["distiller"]["d"][step] + 0.01 * d
            w, d = w - 0.1 * (v_task + v_taught), d - 0.1 * v_own
        np.testing.assert_allclose(params["model"]["w"], w, rtol=1e-12)
        np.testing.assert_allclose(params["distiller"]["d"], d, rtol=1e-12)


def test_a_delta_of_0_is_sgd_and_another_is_not(dotted):
    with jax.enable_x64(True):
        half, _ = run_steps(dotted, 1, 4)
        dotted.optimizer.delta = 0.0
        same, _ = run_steps(dotted, 1, 4)
        dotted.optimizer.name = "sgd"
        sgd, _ = run_steps(dotted, 1, 4)
    assert largest_difference(same.params, sgd.params) < 1e-12
    assert largest_difference(half.params, sgd.params) > 1e-5


def test_one_device_is_four(dotted):
    with jax.enable_x64(True):
        one, four = (run_steps(dotted, devices, 4)[0] for devices in (1, 4))
    assert largest_difference(one.params, four.params) < 1e-10


def test_a_run_without_a_teacher_has_one_stream(dotted):
    """All weight decay is in the task's stream, so the other one stays at 0."""
    dotted.teachers, dotted.losses = {}, {"cross_entropy": {"weight": 1.0}}
    state, _ = run_steps(dotted, 1, 2)
    velocities = jax.tree.leaves(state.opt_state[0].distillation)
    assert velocities and not any(np.any(leaf) for leaf in velocities)


def test_nesterov_is_refused_in_one_line(dotted, one_device):
    dotted.optimizer.nesterov = True
    with pytest.raises(UserError, match="config.optimizer.nesterov: optimizer 'dot' has no Nesterov momentum"):
        resolve(dotted)
    dotted.optimizer.nesterov = False
    assert make_plan(dotted, one_device).config.optimizer.delta == 0.075

"""Terms of the loss are resolved once; a quantity that is added to a table is logged."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_world import batches_of, make_plan, start

from kdjax.distillation import terms, weight_schedules
from kdjax.distillation.diagnostics import DIAGNOSTICS, Diagnostic
from kdjax.distillation.terms import resolve_losses
from kdjax.errors import UserError
from kdjax.training import metrics, schedules, steps
from kdjax.training.loop import train


def test_runs_that_differ_in_numbers_alone_share_a_spec(config):
    first = make_plan(config, jax.local_devices()[:1])
    config.losses.wttm.gamma, config.seed, config.optimizer.learning_rate = 0.25, 3, 0.01
    config.losses.wttm.weight.value = 7.0
    second = make_plan(config, jax.local_devices()[:1])
    assert first.spec == second.spec and hash(first.spec) == hash(second.spec)
    config.losses.wttm.normalize = "none"
    assert make_plan(config, jax.local_devices()[:1]).spec != first.spec


def test_a_step_looks_nothing_up(config, monkeypatch):
    plan = make_plan(config, jax.local_devices()[:1])
    (state, _), fixed = start(plan)
    batch = jax.tree.map(lambda leaf: leaf[0, 0], batches_of(plan, 1))
    for module in (terms, weight_schedules, schedules):
        for name in ("lookup", "signature_of"):
            monkeypatch.setattr(module, name, lambda *args, **kwargs: pytest.fail("looked up inside the step"))
    step = functools.partial(steps.train_step, spec=plan.spec, axis_name="devices")
    assert jax.make_jaxpr(step, axis_env=[("devices", 1)])(state, fixed, batch).out_avals


@dataclasses.dataclass
class Squared:
    """A loss of the user's own that has a signature and no hash."""

    factor: float = 1.0

    def __call__(self, student_logits, teacher_logits):
        return self.factor * jnp.sum((student_logits - teacher_logits) ** 2, axis=-1)


squared = Squared()


def test_a_loss_without_a_hash_shapes_a_step_too(config):
    config.losses = {"own": {"loss": f"{__name__}:squared", "weight": 1.0}}
    plan = make_plan(config, jax.local_devices()[:1])
    assert hash(plan.spec) and plan.spec.terms[0].loss.inputs == ("student_logits", "teacher_logits")


def largest_probability(student_logits, teacher_logits, gamma):
    del student_logits, gamma
    return jnp.max(jax.nn.softmax(teacher_logits), axis=-1)


def test_a_diagnostic_is_added_in_one_place(config, monkeypatch):
    config.diagnostics = True
    monkeypatch.setitem(DIAGNOSTICS, "largest_probability", Diagnostic(largest_probability))
    plan = make_plan(config, jax.local_devices()[:1])
    (state, sums), fixed = start(plan)
    assert "a/largest_probability" in sums.metrics
    batch = jax.tree.map(lambda leaf: leaf[0, 0], batches_of(plan, 1))
    step = functools.partial(steps.train_step, spec=plan.spec, axis_name="devices")
    stepped = jax.vmap(step, in_axes=(None, None, 0), out_axes=None, axis_name="devices")
    _, found = jax.eval_shape(stepped, state, fixed, jax.tree.map(lambda leaf: leaf[None], batch))
    assert found.metrics.keys() == sums.metrics.keys()


def test_an_evaluation_metric_is_added_in_one_place(config, tmp_path, one_device, monkeypatch):
    """The names are read off the function, so a run logs whatever it returns."""
    from kdjax.store import Store

    evaluate = metrics.eval_metrics

    def with_margin(scored, *options):
        top, second = jnp.moveaxis(jax.lax.top_k(scored.logits, 2)[0], -1, 0)
        return evaluate(scored, *options) | metrics.masked_sums({"margin": top - second}, scored.mask)

    monkeypatch.setattr(metrics, "eval_metrics", with_margin)
    config.teachers, config.losses, config.epochs = {}, {"cross_entropy": {"weight": 1.0}}, 1
    config.model.name, config.model.args = "mlp", {"hidden": (7,)}  # no other test compiles it
    result = train(config, Store(tmp_path), name="a", devices=one_device, show=False)
    assert result["last"]["test"]["margin"] > 0


def test_a_weight_that_falls_is_a_number_that_a_schedule_takes_to_zero():
    term = {"weight": 6.0, "temperature": 4.0, "fall_epochs": (1, 5)}
    weight = resolve_losses({"kd": term}, {"a": {}})["kd"]["weight"]
    assert weight == {"schedule": "cosine", "start": 6.0, "end": 0.0, "first": 1, "last": 5}
    found = [float(weight_schedules.weight(weight, weight_schedules.schedule_of(weight), epoch)) for epoch in range(7)]
    np.testing.assert_allclose(found, [6, 6, 3 + 3 / np.sqrt(2), 3, 3 - 3 / np.sqrt(2), 0, 0], atol=1e-6)
    for wrong in ((5,), (5, 1), (1, 2.0), (True, 3)):
        with pytest.raises(UserError, match="config.losses.kd.fall_epochs must be two epochs"):
            resolve_losses({"kd": {**term, "fall_epochs": wrong}}, {"a": {}})
    with pytest.raises(UserError, match="beside a weight that is a number"):
        resolve_losses({"kd": {**term, "ramp_epochs": 2}}, {"a": {}})

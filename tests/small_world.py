"""A small world for tests of training: a convolutional student with BatchNorm, a teacher, and their data in memory."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from kdjax import models
from kdjax.config import defaults
from kdjax.data import Dataset, load_dataset, train_batches
from kdjax.errors import Interrupted
from kdjax.training import metrics
from kdjax.training.evaluation import make_batches
from kdjax.training.loop import train
from kdjax.training.member import initial_carry
from kdjax.training.plan import Plan, plan_with, resolve
from kdjax.training.population import Population, compiled_population
from kdjax.training.spec import Fixed, Spec
from kdjax.training.teacher_logits import cached_logits
from kdjax.training.teachers import Teacher
from kdjax.training.trainer import Trainer


def student_config(**changed) -> ConfigDict:
    config = defaults()
    config.model.name = "four_layers:FourLayers"
    config.teachers = {"a": {"run": "images/resnet8-ce-s0"}}
    config.losses = {
        "cross_entropy": {"weight": 1.0},
        "wttm": {"weight": {"schedule": "warmup", "value": 2.0, "epochs": 3}, "gamma": 0.5, "normalize": "batch_mean"},
    }
    config.data.name = "arrays"
    config.data.validation = 0.25
    config.batch_size = 8
    config.eval_batch_size = 8
    config.epochs = 3
    config.schedule.milestones = (2,)
    config.update(changed)
    return config


def fresh_teacher(dataset: Dataset, seed: int = 5) -> Teacher:
    model = models.create_model("four_layers:FourLayers", dataset.num_classes)
    variables = models.init_variables(model, (1, *dataset.images.shape[1:]), seed)
    return Teacher(model, variables, dataset.num_classes, "softmax", {}, None)


def make_plan(config: ConfigDict, devices) -> Plan:
    config = resolve(config)
    dataset = load_dataset(config.data, "")
    teachers = {name: fresh_teacher(dataset) for name in config.teachers}
    return plan_with(config, dataset, teachers, devices)


def start(plan: Plan):
    """Returns ((state, sums) before the first step, what the step only reads), on the host."""
    teachers = {name: teacher.variables for name, teacher in plan.teachers.items()}
    arrays = {"images": plan.dataset.images, "labels": plan.dataset.labels, "soft": plan.dataset.soft}
    return jax.tree.map(np.array, initial_carry(plan)), Fixed(teachers, arrays, plan.numbers, cached_logits(plan))


def batches_of(plan, num_steps: int, mask=None):
    devices, config = plan.devices, plan.config
    rows = [train_batches(plan.dataset.splits["train"], 0, epoch, config.batch_size) for epoch in range(9)]
    index = np.concatenate(rows)[:num_steps]
    mask = np.ones(index.shape, bool) if mask is None else np.broadcast_to(mask, index.shape)
    return make_batches(index, mask, 0, devices)


class Alone:
    """A plan that is trained alone, as a population of one, without a store.

    Attributes:
      carry: (state, sums) on the devices.
    """

    def __init__(self, plan: Plan, spec: Spec | None = None):
        """Makes one for the phase that a spec of the plan is of; by default, training proper."""
        self.population = Population([plan])
        spec = self.population.spec_at(plan.config.warmup.epochs)._replace(members=(spec or plan.spec,))
        self._compiled = compiled_population(spec, plan.devices)
        self.place(*initial_carry(plan))

    def place(self, state, sums) -> None:
        """Goes on from a state on the host."""
        (state,), (sums,) = self.population.place([(state, sums)])
        self.carry = state, sums

    def step(self, batches):
        """Makes the steps of batches in one dispatch and returns (state, sums) on the host."""
        state, sums = self.carry
        (state,), (sums,) = self._compiled(((state,), (sums,)), self.population.fixed, batches)
        self.carry = state, sums
        return jax.device_get(self.carry)


def run_steps(config, num_devices: int, num_steps: int, mask=None):
    """Makes steps on emulated devices, one in each dispatch; returns state and sums on the host."""
    plan = make_plan(config, tuple(jax.local_devices()[:num_devices]))
    alone, batches, found = Alone(plan), batches_of(plan, num_steps, mask), None
    for step in range(num_steps):
        found = alone.step(jax.tree.map(lambda leaf, step=step: leaf[:, step : step + 1], batches))
    return found


def values_of(plan: Plan, num_steps: int, loss: str):
    """Makes steps of training proper; returns the last state, and the value of a loss in each of the steps."""
    alone, batches, values = Alone(plan), batches_of(plan, num_steps), []
    for step in range(num_steps):
        state, sums = alone.step(jax.tree.map(lambda leaf, step=step: leaf[:, step : step + 1], batches))
        values.append(metrics.means(sums.metrics)[f"losses/{loss}"])
        alone.place(state, metrics.zero_train_sums(plan.spec, plan.numbers))
    return state, values


def largest_difference(a, b) -> float:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(
        float(np.max(np.abs(x - y) / max(1e-6, np.max(np.abs(x), initial=0)), initial=0))
        for x, y in pairs
        if x.dtype.kind == "f"
    )


def without_times(rows: list[dict]) -> list[dict]:
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows]


def stop_after(dispatches: int, monkeypatch) -> None:
    """Simulates SIGTERM after a number of dispatches."""
    dispatch, made = Trainer._dispatch, []

    def stopping(self, *args):
        dispatch(self, *args)
        made.append(1)
        if len(made) == dispatches:
            self.stop.signum = 15

    monkeypatch.setattr(Trainer, "_dispatch", stopping)


def assert_stopped_and_resumed_is_unbroken(config, store, devices, dispatches, monkeypatch):
    unbroken = train(config, store, devices=devices, show=False, name="unbroken")
    stop_after(dispatches, monkeypatch)
    with pytest.raises(Interrupted) as stop:
        train(config, store, devices=devices, show=False, name="broken")
    assert stop.value.signum == 15
    resumed = train(config, store, devices=devices, show=False, name="broken")
    a, b = store.find("unbroken"), store.find("broken")
    assert without_times(a.metrics()) == without_times(b.metrics())
    assert {**unbroken, "seconds": 0} == {**resumed, "seconds": 0}
    variables = (trained.restore_variables("last")[0] for trained in (a, b))
    jax.tree.map(np.testing.assert_array_equal, *variables)

"""Train and eval steps: pure per-device functions that know the name of the mapped axis and nothing else of devices."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax import lax

from kdjax import models
from kdjax.data.views import augment
from kdjax.distillation import weight_schedules
from kdjax.distillation.distillers import make_distiller
from kdjax.distillation.terms import Term
from kdjax.errors import UserError
from kdjax.training import averaging, forward, metrics
from kdjax.training import state as train_state
from kdjax.training.dot import Streams
from kdjax.training.forward import Prepared
from kdjax.training.freezing import mask_updates
from kdjax.training.metrics import Observed, Scored, Sums
from kdjax.training.spec import EvalSpec, Fixed, Spec, StepContext
from kdjax.training.state import TrainState
from kdjax.training.structure import combine
from kdjax.types import Array, Batch


class Objective(NamedTuple):
    """What one evaluation of the objective computes beside the loss.

    Attributes:
      terms: Name -> [] mean of each loss over the global batch, as this device contributes to it.
      logits: [batch, classes] of the student.
      batch_stats: The student's batch statistics after the step.
      distiller_state: The state of the adapters after the step.
    """

    terms: dict[str, Array]
    logits: Array
    batch_stats: Any
    distiller_state: dict[str, Any]


def train_step(state: TrainState, fixed: Fixed, batch: Batch, *, spec: Spec, axis_name: str) -> tuple[TrainState, Sums]:
    """Makes one update from one device's share of a batch.

    Args:
      state: The state before the step; may be donated.
      fixed: What the step only reads, replicated; never donated.
      batch: This device's share; means are over all devices' unmasked examples.
      spec: Static.
      axis_name: The mapped axis of the devices.

    Returns:
      The state after the update and the step's sums, both the same on every device.
    """
    context = make_context(fixed.numbers, batch, spec, axis_name)
    return update_student(state, forward.prepare(fixed, context), context)


def make_context(numbers: Mapping[str, Any], batch: Batch, spec: Spec, axis_name: str) -> StepContext:
    """Returns what the parts of a step read, with the numbers of a config in their places."""
    return StepContext(batch, combine(spec.structure, numbers), spec, axis_name)


def update_student(state: TrainState, prepared: Prepared, context: StepContext) -> tuple[TrainState, Sums]:
    """Makes one update of a student for which views and teachers are prepared.

    Args:
      state: The state before the step; may be donated.
      prepared: The views of the batch and what the teachers' networks computed.
      context: What the step reads.

    Returns:
      The state after the update and the step's sums, both the same on every device.
    """
    batch, config, spec, axis_name = context
    views, teachers = prepared.views, forward.read_teachers(prepared.networks, context)
    ensemble = forward.ensemble_of(teachers, context)
    distiller, images = make_distiller(spec.terms), views.images[spec.view]

    def objective(trainable: dict[str, Any]) -> Objective:
        with models.convolutions_for(spec.platform):
            output, batch_stats = forward.run_student(trainable["model"], state, images, context)
            variables = {"params": trainable["model"], "batch_stats": batch_stats}
            inputs = forward.loss_inputs(output, variables, views, teachers, ensemble, context)
            carried = {"params": trainable["distiller"], "state": state.distiller["state"]}
            values, distiller_state = distiller.apply(carried, inputs, config["losses"])
        terms = {term.key: _mean(term, values[term.key], context) for term in spec.terms}
        return Objective(terms, output.logits, batch_stats, distiller_state)

    total, found, gradients = _slopes(objective, state.trainable, context)
    total, terms, gradients, batch_stats = lax.pmean((total, found.terms, gradients, found.batch_stats), axis_name)
    distiller_state = _average_statistics(found.distiller_state, axis_name)
    new_state = _update(state, gradients, batch_stats, distiller_state, context)
    teacher_logits = {name: teacher.logits for name, teacher in teachers.items()}
    observed = Observed(total, terms, found.logits, teacher_logits, views.labels, batch.mask, batch.labelled)
    logged = metrics.train_metrics(observed, config["losses"], spec.diagnostics)
    bad_step = jnp.where(jnp.isfinite(total), metrics.NEVER, state.step).astype(jnp.int32)
    return new_state, Sums(lax.psum(logged, axis_name), bad_step)


def _slopes(
    objective: Callable[[dict[str, Any]], Objective], trainable: dict[str, Any], context: StepContext
) -> tuple[Array, Objective, Any]:
    """Returns the weighted sum of the terms, what else was computed, and the gradients: for DOT those of two sums."""
    terms = context.spec.terms

    def total(trainable: dict[str, Any]) -> tuple[Array, Objective]:
        found = objective(trainable)
        return sum(_weight(term, context) * found.terms[term.key] for term in terms), found

    def totals(trainable: dict[str, Any]) -> tuple[tuple[Array, Array], Objective]:
        found = objective(trainable)
        parts = [[term for term in terms if term.loss.reads_teacher == reads] for reads in (False, True)]
        start = jnp.zeros((), jnp.result_type(float))
        task, taught = (sum((_weight(t, context) * found.terms[t.key] for t in part), start) for part in parts)
        return (task, taught), found

    if context.config["optimizer"]["name"] != "dot":
        (value, found), gradients = jax.value_and_grad(total, has_aux=True)(trainable)
        return value, found, gradients
    (task, taught), pull, found = jax.vjp(totals, trainable, has_aux=True)
    one, none = jnp.ones_like(task), jnp.zeros_like(task)
    return task + taught, found, Streams(pull((one, none))[0], pull((none, one))[0])


def _weight(term: Term, context: StepContext) -> Array:
    """Returns a term's weight in this phase; schedules count epochs from the first epoch of the phase."""
    if context.spec.phase == "warmup":
        return context.config["warmup"]["losses"][term.key]
    weight = context.config["losses"][term.key]["weight"]
    return weight_schedules.weight(weight, term.schedule, context.batch.epoch - context.spec.first_epoch)


def _average_statistics(distiller_state: Mapping[str, Any], axis_name: str | None) -> dict[str, Any]:
    """Averages the adapters' statistics over the devices; memories are already the same on every device."""
    return {
        key: {
            name: {**state, "batch_stats": lax.pmean(state["batch_stats"], axis_name)}
            for name, state in teachers.items()
        }
        for key, teachers in distiller_state.items()
    }


def _mean(term: Term, value: Array, context: StepContext) -> Array:
    """Returns a term's mean over the global batch, such that averaging its gradients over devices gives its gradient.

    A loss that reads labels is averaged over labelled examples, every other loss over all examples.

    Raises:
      UserError: The loss returns something else than floats [] or [batch], or reduces labels that some examples lack.
    """
    batch, axis_name = context.batch, context.axis_name
    if not (isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jnp.floating)):
        kind = f"an array of type {value.dtype}" if isinstance(value, jax.Array) else f"a {type(value).__name__}"
        raise UserError(f"loss '{term.key}' must return a jax array of floats, which has a gradient, not {kind}.")
    if value.ndim == 0:
        if context.spec.unlabelled and term.loss.reads_labels:
            raise UserError(
                f"loss '{term.key}' reads labels and returns one number, and some examples have no label; return one "
                "number for each example, [batch], so that examples without a label can be left out."
            )
        return value
    if value.shape != batch.mask.shape:
        raise UserError(f"loss '{term.key}' must return [] or [batch]={batch.mask.shape}, not {value.shape}.")
    mask = batch.mask & batch.labelled if term.loss.reads_labels else batch.mask
    count = lax.psum(jnp.sum(mask), axis_name)
    local = jnp.sum(jnp.where(mask, value, 0))
    return local * lax.psum(1, axis_name) / jnp.maximum(count, 1)


def _update(
    state: TrainState, gradients: Any, batch_stats: Any, distiller_state: dict[str, Any], context: StepContext
) -> TrainState:
    """Applies the optimizer to what the phase trains."""
    config, spec = context.config, context.spec
    optimizer = train_state.optimizer(config, rate(state.step, config, spec))
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.trainable)
    body_factor = config["optimizer"]["body_factor"]
    slopes = gradients.total if isinstance(gradients, Streams) else gradients
    updates = mask_updates(cast("dict[str, Any]", updates), slopes, spec.freezing, body_factor)
    trainable = cast("dict[str, Any]", optax.apply_updates(state.trainable, updates))
    average = averaging.update(state.average, trainable["model"], _updates(state, spec), config, spec.steps_per_epoch)
    return TrainState(
        step=state.step + 1,
        params=trainable["model"],
        batch_stats=batch_stats,
        distiller={"params": trainable["distiller"], "state": distiller_state},
        opt_state=opt_state,
        average=average,
    )


def _updates(state: TrainState, spec: Spec) -> Array:
    """Returns the number of updates of training proper with the next one, 0 in the warm-up."""
    if spec.phase == "warmup":
        return jnp.zeros_like(state.step)
    return state.step + 1 - spec.first_epoch * spec.steps_per_epoch


def rate(step: Array, config: Mapping[str, Any], spec: Spec) -> Array:
    """Returns the learning rate of a step: constant in the warm-up, then scheduled from the first step after it."""
    if spec.phase == "warmup":
        own = config["warmup"]["learning_rate"]
        return jnp.where(own > 0, own, config["optimizer"]["learning_rate"])
    first = spec.first_epoch * spec.steps_per_epoch
    return train_state.rate_at(step - first, config, spec.steps_per_epoch, spec.schedule)


def eval_step(variables: Mapping[str, Any], arrays: Any, batch: Batch, *, spec: EvalSpec, axis_name: str) -> Sums:
    """Sums the metrics of an evaluation over one device's share of a batch.

    Args:
      variables: The network's variables, replicated.
      arrays: The resident data set, None when batches carry their arrays.
      batch: This device's share.
      spec: Static.
      axis_name: The mapped axis of the devices.
    """
    own = augment.materialize(arrays, batch)
    images = augment.render(
        own.images, own.rows, batch.index, batch.epoch, 0, view="none", stored=spec.stored, train=False
    )
    output, _ = models.call(spec.model, variables, images, train=False)
    scored = Scored(output.logits, own.labels, own.soft if spec.soft else None, batch.mask, batch.index)
    found = metrics.eval_metrics(scored, spec.unseen, spec.shared)
    return Sums(lax.psum(found, axis_name), jnp.asarray(metrics.NEVER, jnp.int32))


def eval_steps(variables: Mapping[str, Any], arrays: Any, batches: Batch, *, spec: EvalSpec, axis_name: str) -> Sums:
    """Sums the metrics over the `[steps, ...]` batches in one dispatch."""

    def body(sums: Sums, batch: Batch) -> tuple[Sums, None]:
        step_sums = eval_step(variables, arrays, batch, spec=spec, axis_name=axis_name)
        return metrics.merge(sums, step_sums), None

    return lax.scan(body, metrics.zero_eval_sums(spec), batches)[0]

"""Train and eval steps: per-device bodies that know an axis name and nothing of devices."""

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from kdjax import losses, models
from kdjax.data.views import augment
from kdjax.distillation import distillers, schedules
from kdjax.errors import UserError, lookup
from kdjax.training import forward, metrics
from kdjax.training import initialization as start
from kdjax.training import state as train_state
from kdjax.training.metrics import Sums
from kdjax.training.spec import Fixed, Spec
from kdjax.training.state import TrainState
from kdjax.training.structure import join
from kdjax.types import Batch


def train_step(state: TrainState, fixed: Fixed, batch: Batch, *, spec: Spec, axis_name: str) -> tuple[TrainState, Sums]:
    """Makes one update from one device's share of a batch.

    Args:
      state: may be donated.
      fixed: replicated; never donated.
      batch: this device's share; means are over all devices' unmasked examples.
      spec: static.
      axis_name: of the devices.

    Returns:
      The state after the update and the step's sums, both the same on every device.
    """
    config = join(spec.structure, fixed.numbers)
    seen = forward.see(fixed, batch, config, spec)
    images, labels, targets = seen.views[spec.view], seen.labels, seen.targets
    teachers = forward.run_teachers(fixed, seen.views, batch, config, spec, axis_name)
    ensemble = forward.join_teachers(teachers, batch, config, spec)
    chosen = {key: config["losses"][key] for key in spec.terms}
    distiller = distillers.make_distiller(chosen, warming_up=spec.phase == "warmup")

    def objective(trainable):
        output, batch_stats = forward.run_student(trainable["model"], state, images, batch, config, spec, axis_name)
        inputs = {
            "logits": output.logits, "student_logits": output.logits, "labels": targets, "index": batch.index,
            "mask": batch.mask, "axis_name": axis_name, "teachers": teachers, "ensemble": ensemble, "output": output,
            "classes": labels, "epoch": batch.epoch, "seed": config["seed"], "unbiased": spec.unbiased_variance,
            "sync": axis_name if spec.sync_batch_norm else None,
        }  # fmt: skip
        carried = {"params": trainable["distiller"], "state": state.distiller["state"]}
        values, distiller_state = distiller.apply(carried, inputs, chosen)
        terms = {key: _mean(key, value, batch, config, spec, axis_name) for key, value in values.items()}
        total = sum(_weight(key, batch.epoch, config, spec) * terms[key] for key in terms)
        return total, (terms, inputs, batch_stats, distiller_state)

    (total, aux), gradients = jax.value_and_grad(objective, has_aux=True)(state.trainable)
    terms, inputs, batch_stats, distiller_state = aux
    total, terms, gradients, batch_stats = lax.pmean((total, terms, gradients, batch_stats), axis_name)
    distiller_state = _agreed(distiller_state, axis_name)
    new_state = _update(state, gradients, batch_stats, distiller_state, config, spec)
    observed = _observe(total, terms, inputs, labels, batch, config, spec)
    bad = jnp.where(jnp.isfinite(total), metrics.NEVER, state.step).astype(jnp.int32)
    return new_state, Sums(lax.psum(observed, axis_name), bad)


def _weight(key: str, epoch, config: Mapping, spec: Spec):
    """A term's weight in this phase; schedules count epochs from the phase's first."""
    weights = config["warmup"]["losses"] if spec.phase == "warmup" else None
    weight = weights[key] if weights else config["losses"][key]["weight"]
    return schedules.weight(weight, epoch - spec.first_epoch)


def _agreed(distiller_state, axis_name: str):
    """The state that all devices carry on: statistics as a mean over them; memories they have written alike."""
    return {
        key: {
            name: {**state, "batch_stats": lax.pmean(state["batch_stats"], axis_name)}
            for name, state in teachers.items()
        }
        for key, teachers in distiller_state.items()
    }


def _term_mask(key: str, batch: Batch, config: Mapping):
    """A loss that reads labels sees labelled examples only, every other loss sees all."""
    return batch.mask & batch.labelled if _reads_labels(key, config) else batch.mask


def _reads_labels(key: str, config: Mapping) -> bool:
    function = lookup(losses.LOSSES, config["losses"][key]["loss"], "loss")
    return "labels" in inspect.signature(function).parameters


def _mean(key: str, value, batch: Batch, config: Mapping, spec: Spec, axis_name: str):
    """A term's mean over the global batch, such that the mean over devices of its gradients is its gradient."""
    if value.ndim == 0:
        if spec.unlabelled and _reads_labels(key, config):
            raise UserError(
                f"loss '{key}' reads labels and returns one number, and some examples have no label; return one an "
                "example, [batch]: those without must not count."
            )
        return value
    if value.shape != batch.mask.shape:
        raise UserError(f"loss '{key}' must return [] or [batch]={batch.mask.shape}, not {value.shape}.")
    mask = _term_mask(key, batch, config)
    count = lax.psum(jnp.sum(mask), axis_name)
    local = jnp.sum(jnp.where(mask, value, 0))
    return local * lax.psum(1, axis_name) / jnp.maximum(count, 1)


def _update(state: TrainState, gradients, batch_stats, distiller_state, config: Mapping, spec: Spec) -> TrainState:
    optimizer = train_state.optimizer(config, rate(state.step, config, spec))
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.trainable)
    updates = _held(updates, gradients, config, spec)
    trainable = optax.apply_updates(state.trainable, updates)
    return TrainState(
        step=state.step + 1,
        params=trainable["model"],
        batch_stats=batch_stats,
        distiller={"params": trainable["distiller"], "state": distiller_state},
        opt_state=opt_state,
    )


def rate(step, config: Mapping, spec: Spec):
    """The learning rate of a step: the schedule's, counted from the phase's first step; constant in the warm-up."""
    if spec.phase == "warmup":
        own = config["warmup"]["learning_rate"]
        return jnp.where(own > 0, own, config["optimizer"]["learning_rate"])
    return train_state.rate_at(step - spec.first_epoch * spec.steps_per_epoch, config, spec.steps_per_epoch)


def _held(updates, gradients, config: Mapping, spec: Spec):
    """An optimizer's updates without those of the parts that this phase does not train.

    In a warm-up that is whatever its losses do not reach: weight decay alone would wear the later layers away.
    """
    if spec.phase == "warmup":
        updates = jax.tree.map(lambda update, gradient: update * jnp.any(gradient != 0), updates, gradients)
    model, distiller = updates["model"], updates["distiller"]
    factor = 0.0 if spec.trainable == "head" else config["optimizer"]["body_factor"]
    model = start.scale_body(model, spec.head, factor)
    if spec.moves == "body":
        model = {
            name: jax.tree.map(jnp.zeros_like, tree) if name == spec.head else tree for name, tree in model.items()
        }
    elif spec.moves == "distiller":
        model = jax.tree.map(jnp.zeros_like, model)
    held = {
        key: start.hold(trees, distillers.trained_parts(config["losses"][key], next(iter(trees.values())), spec.phase))
        if key in spec.terms
        else jax.tree.map(jnp.zeros_like, trees)
        for key, trees in distiller.items()
    }
    return {"model": model, "distiller": held}


def _observe(total, terms: Mapping, inputs: Mapping, labels, batch: Batch, config: Mapping, spec: Spec):
    """This device's share of the metrics; scalars that all devices agree on count for the local examples."""
    local = jnp.sum(batch.mask).astype(total.dtype)
    values = {"loss": total, **{f"losses/{key}": value for key, value in terms.items()}}
    seen = {name: (value * local, local) for name, value in values.items()}
    nothing = jnp.zeros_like(local)
    seen |= {f"losses/{key}": (nothing, nothing) for key in config["losses"] if key not in terms}  # of other phases
    seen |= _sums({"accuracy": metrics.accuracy(inputs["logits"], labels)}, batch.mask & batch.labelled)
    return seen | _sums(distillers.diagnostics(inputs, config["losses"]) if spec.diagnostics else {}, batch.mask)


def _sums(per_example: Mapping, mask) -> dict:
    return {
        name: (jnp.sum(jnp.where(mask, value, 0)), jnp.sum(mask).astype(value.dtype))
        for name, value in per_example.items()
    }


def train_metric_names(spec: Spec) -> tuple[str, ...]:
    """The names that `train_step` reports."""
    terms = [name for name, _ in next(value for key, value in spec.structure.items if key == "losses").items]
    names = ["loss", *(f"losses/{name}" for name in terms), "accuracy"]
    if spec.diagnostics:
        looks = ("teacher_entropy", "kl_to_transformed", "wttm_weight")
        names += ["student_entropy", *(f"{teacher.name}/{look}" for teacher in spec.teachers for look in looks)]
    return tuple(names)


class EvalSpec(NamedTuple):
    """What shapes a compiled evaluation.

    Attributes:
      model: the network.
      stored: the data's stored form.
      num_classes: of the data.
      unseen: classes that training never showed, whose examples are also counted apart.
      scored: whether outputs are also compared with the data's distributions.
    """

    model: nn.Module
    stored: Any
    num_classes: int
    unseen: tuple[int, ...] = ()
    scored: bool = False


def eval_step(variables: Mapping, arrays: Any, batch: Batch, *, spec: EvalSpec, axis_name: str) -> Sums:
    """Sums loss (cross-entropy), accuracy, and what else the spec asks for, over one device's share of a batch."""
    images, rows, labels, soft = augment.materialize(arrays, batch)
    images = augment.render(images, rows, batch.index, batch.epoch, 0, view="none", stored=spec.stored, train=False)
    output, _ = models.call(spec.model, variables, images, train=False)
    per_example = {
        "loss": losses.cross_entropy(output.logits, labels),
        "accuracy": metrics.accuracy(output.logits, labels),
    }
    if spec.num_classes > 5:
        per_example["top5"] = metrics.top5(output.logits, labels)
    if spec.scored:
        per_example["distance"] = losses.softmax_mse(output.logits, soft, reduction="class_sum")
    sums = _sums(per_example, batch.mask)
    if spec.unseen:
        unseen = jnp.isin(labels, jnp.asarray(spec.unseen))
        sums |= _sums({"accuracy_unseen": per_example["accuracy"]}, batch.mask & unseen)
        sums |= _sums({"accuracy_seen": per_example["accuracy"]}, batch.mask & ~unseen)
    return Sums(lax.psum(sums, axis_name), jnp.asarray(metrics.NEVER, jnp.int32))


def eval_metric_names(spec: EvalSpec) -> tuple[str, ...]:
    """The names that `eval_step` reports."""
    asked = {"top5": spec.num_classes > 5, "distance": spec.scored}
    apart = ("accuracy_seen", "accuracy_unseen") if spec.unseen else ()
    return ("loss", "accuracy", *(name for name, holds in asked.items() if holds), *apart)


def train_steps(carry: tuple[TrainState, Sums], fixed: Fixed, batches: Batch, *, spec: Spec, axis_name: str):
    """Makes the `[steps, ...]` updates of `batches` in one dispatch and adds their sums to the carried ones."""

    def body(carry, batch):
        state, sums = carry
        state, step_sums = train_step(state, fixed, batch, spec=spec, axis_name=axis_name)
        return (state, metrics.merge(sums, step_sums)), None

    if batches.index.shape[0] == 1:  # no loop: on CPU a convolution's gradient inside one is 17 times slower
        return body(carry, jax.tree.map(lambda leaf: leaf[0], batches))[0]
    return lax.scan(body, carry, batches)[0]


def eval_steps(variables: Mapping, arrays: Any, batches: Batch, *, spec: EvalSpec, axis_name: str) -> Sums:
    """Sums the metrics over the `[steps, ...]` batches in one dispatch."""

    def body(sums, batch):
        step_sums = eval_step(variables, arrays, batch, spec=spec, axis_name=axis_name)
        return metrics.merge(sums, step_sums), None

    return lax.scan(body, metrics.zeros(eval_metric_names(spec)), batches)[0]

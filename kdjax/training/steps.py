"""Train and eval steps: per-device bodies that know an axis name and nothing of devices."""

import functools
import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from kdjax import losses, models
from kdjax.data import augment
from kdjax.errors import UserError, lookup
from kdjax.training import distillers, metrics, schedules, start
from kdjax.training import state as train_state
from kdjax.training.metrics import Sums
from kdjax.training.state import TrainState
from kdjax.training.structure import Structure, join
from kdjax.types import Batch


class Fixed(NamedTuple):
    """What a step reads and never changes, the same on every device.

    Attributes:
      teachers: name -> variables.
      arrays: the resident data set {'images', 'labels', 'soft'}, or None when batches carry their arrays.
      numbers: the config's floats and the seed, as the structure's holes want them.
    """

    teachers: dict
    arrays: Any
    numbers: dict


class Spec(NamedTuple):
    """What shapes a compiled step: hashable, equal for two runs that may share one compilation.

    Attributes:
      model: the network that is trained.
      teachers: (name, network, output space) each.
      structure: the traced sections of the config with holes for their numbers.
      stored: how the data's stored values become network inputs.
      view: the augmentation.
      targets: 'labels' or 'soft'.
      phase: 'main' or 'warmup', in which other terms count and other parts move.
      terms: names of the losses of this phase.
      first_epoch: that the phase begins with.
      moves: what the phase trains: 'all', the student's 'body', or the 'distiller' alone.
      steps_per_epoch: full batches in an epoch.
      sync_batch_norm: whether batch statistics are those of the global batch.
      unbiased_variance: whether BatchNorm's running variance is PyTorch's.
      trainable: 'all' or 'head'.
      head: name of the classifier among the parameters.
      diagnostics: whether to log entropies and weights.
    """

    model: nn.Module | models.Picked
    teachers: tuple[tuple[str, nn.Module | models.Picked, str], ...]
    structure: Structure
    stored: Any
    view: str
    targets: str
    phase: str
    terms: tuple[str, ...]
    first_epoch: int
    moves: str
    steps_per_epoch: int
    sync_batch_norm: bool
    unbiased_variance: bool
    trainable: str
    head: str
    diagnostics: bool


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
    images, labels, targets = _inputs(fixed, batch, config, spec)
    teachers = _run_teachers(fixed, images, config, spec)
    chosen = {key: config["losses"][key] for key in spec.terms}
    distiller = distillers.make_distiller(chosen, warming_up=spec.phase == "warmup")

    def objective(trainable):
        output, batch_stats = _run_student(trainable["model"], state, images, batch, config, spec, axis_name)
        inputs = {
            "logits": output.logits, "student_logits": output.logits, "labels": targets, "index": batch.index,
            "mask": batch.mask, "axis_name": axis_name, "teachers": teachers, "output": output,
            "classes": labels, "epoch": batch.epoch, "seed": config["seed"], "unbiased": spec.unbiased_variance,
            "sync": axis_name if spec.sync_batch_norm else None,
        }  # fmt: skip
        carried = {"params": trainable["distiller"], "state": state.distiller["state"]}
        values, distiller_state = distiller.apply(carried, inputs, chosen)
        terms = {key: _mean(key, value, batch, config, axis_name) for key, value in values.items()}
        total = sum(_weight(key, batch.epoch, config, spec) * terms[key] for key in terms)
        return total, (terms, inputs, batch_stats, distiller_state)

    (total, aux), gradients = jax.value_and_grad(objective, has_aux=True)(state.trainable)
    terms, inputs, batch_stats, distiller_state = aux
    total, terms, gradients, batch_stats = lax.pmean((total, terms, gradients, batch_stats), axis_name)
    distiller_state = _agreed(distiller_state, axis_name)
    new_state = _update(state, gradients, batch_stats, distiller_state, config, spec)
    seen = _observe(total, terms, inputs, labels, batch, config, spec)
    bad = jnp.where(jnp.isfinite(total), metrics.NEVER, state.step).astype(jnp.int32)
    return new_state, Sums(lax.psum(seen, axis_name), bad)


def _inputs(fixed: Fixed, batch: Batch, config: Mapping, spec: Spec):
    """Makes resident and streamed batches alike: augmented images, integer labels, and what label losses see."""
    images, rows, labels, soft = augment.materialize(fixed.arrays, batch)
    images = augment.render(
        images, rows, batch.index, batch.epoch, config["seed"], view=spec.view, stored=spec.stored, train=True
    )
    return images, labels, soft if spec.targets == "soft" else labels


def _run_teachers(fixed: Fixed, images, config: Mapping, spec: Spec) -> dict[str, dict]:
    """Teachers see the student's view, in eval mode and outside the gradient."""
    outputs = {}
    for name, model, output_space in spec.teachers:
        output, _ = models.call(model, fixed.teachers[name], images, train=False)
        logits = lax.stop_gradient(output.logits)
        if output_space == "clipped_logits":  # the outputs themselves estimate probabilities
            logits = jnp.log(jnp.clip(logits, 1e-6, 1.0))
        outputs[name] = {
            "logits": logits,
            "weight": config["teachers"][name]["weight"],
            "output": _frozen(output),
            "norms": norms(model, fixed.teachers[name]),
        }
    return outputs


def _frozen(output):
    """An output outside the gradient; by hand, since a tree's mappings come back in the order of their keys."""
    pooled = None if output.pooled is None else lax.stop_gradient(output.pooled)
    features = {name: lax.stop_gradient(leaf) for name, leaf in output.features.items()}
    return output._replace(logits=lax.stop_gradient(output.logits), features=features, pooled=pooled)


def norms(model: nn.Module | models.Picked, variables: Mapping) -> dict[str, tuple]:
    """Stage -> (scale, bias) of the BatchNorm before its ReLU, for a network that names them."""
    module = model.module if isinstance(model, models.Picked) else model
    paths = module.preact_norms() if hasattr(module, "preact_norms") else {}
    found = {}
    for stage, path in paths.items():
        layer = functools.reduce(lambda tree, part: tree[part], path.split("/"), variables["params"])
        found[stage] = layer["scale"], layer["bias"]
    return found


def example_inputs(spec: Spec, variables: Mapping, teachers: Mapping, numbers: Mapping, input_shape: tuple) -> dict:
    """Returns what losses are offered for two blank images: to be traced for its shapes."""
    images, two = jnp.zeros((2, *input_shape)), jnp.zeros(2, jnp.int32)
    config = join(spec.structure, numbers)
    output, _ = models.call(spec.model, variables, images, train=False)
    batch = {"logits": output.logits, "student_logits": output.logits, "labels": two, "index": two, "mask": two == 0}
    taught = _run_teachers(Fixed(teachers, None, numbers), images, config, spec)
    own = {
        "classes": two,
        "axis_name": None,
        "teachers": taught,
        "output": output,
        "epoch": two[0],
        "seed": config["seed"],
    }
    return {**batch, **own}


def _run_student(params, state: TrainState, images, batch: Batch, config: Mapping, spec: Spec, axis_name: str):
    """Runs the network that is trained; one of which only the head is trained runs as in evaluation."""
    if spec.trainable == "head":
        params = start.freeze_body(params, spec.head)
    return models.call(
        spec.model,
        {"params": params, "batch_stats": state.batch_stats},
        images,
        train=spec.trainable == "all" and spec.moves != "distiller",
        axis_name=axis_name if spec.sync_batch_norm else None,
        rngs={"dropout": _dropout_key(config["seed"], state.step, axis_name)},
        keys=_example_keys(config["seed"], batch),
        unbiased=spec.unbiased_variance,
    )


def _example_keys(seed, batch: Batch):
    """One key an example, from (seed, epoch, example) alone, for what a network draws inside (drop-path)."""
    key = jax.random.key(jnp.asarray(seed, jnp.uint32), impl="threefry2x32")
    key = jax.random.fold_in(jax.random.fold_in(key, 0xD809), batch.epoch)  # apart from the keys of the views
    return jax.vmap(lambda example: jax.random.fold_in(key, example))(batch.index)


def _dropout_key(seed, step, axis_name: str):
    """Dropout inside a network of the user's own is the one draw that depends on the device."""
    key = jax.random.fold_in(jax.random.key(seed), 0xD809)  # apart from the keys of the views
    key = jax.random.fold_in(key, step)
    return jax.random.fold_in(key, lax.axis_index(axis_name))


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
    function = lookup(losses.LOSSES, config["losses"][key]["loss"], "loss")
    reads_labels = "labels" in inspect.signature(function).parameters
    return batch.mask & batch.labelled if reads_labels else batch.mask


def _mean(key: str, value, batch: Batch, config: Mapping, axis_name: str):
    """A term's mean over the global batch, such that the mean over devices of its gradients is its gradient."""
    if value.ndim == 0:
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
    per_example = {"accuracy": metrics.accuracy(inputs["logits"], labels)}
    if spec.diagnostics:
        per_example |= distillers.diagnostics(inputs, config["losses"])
    return seen | _sums(per_example, batch.mask)


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
        names += ["student_entropy", *(f"{teacher}/{look}" for teacher, _, _ in spec.teachers for look in looks)]
    return tuple(names)


class EvalSpec(NamedTuple):
    """What shapes a compiled evaluation: the network, the data's stored form and its class count."""

    model: nn.Module
    stored: Any
    num_classes: int


def eval_step(variables: Mapping, arrays: Any, batch: Batch, *, spec: EvalSpec, axis_name: str) -> Sums:
    """Sums loss (cross-entropy), accuracy and, above five classes, top-5 over one device's share of a batch."""
    images, rows, labels, _ = augment.materialize(arrays, batch)
    images = augment.render(images, rows, batch.index, batch.epoch, 0, view="none", stored=spec.stored, train=False)
    output, _ = models.call(spec.model, variables, images, train=False)
    per_example = {
        "loss": losses.cross_entropy(output.logits, labels),
        "accuracy": metrics.accuracy(output.logits, labels),
    }
    if spec.num_classes > 5:
        per_example["top5"] = metrics.top5(output.logits, labels)
    sums = _sums(per_example, batch.mask)
    return Sums(lax.psum(sums, axis_name), jnp.asarray(metrics.NEVER, jnp.int32))


def eval_metric_names(spec: EvalSpec) -> tuple[str, ...]:
    """The names that `eval_step` reports."""
    return ("loss", "accuracy", "top5") if spec.num_classes > 5 else ("loss", "accuracy")


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

"""What a step sees before any loss: images, teachers' outputs, the student's."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from kdjax import models, randomness
from kdjax.data.views import augment
from kdjax.data.views import names as view_names
from kdjax.errors import UserError
from kdjax.training import initialization as start
from kdjax.training.spec import Fixed, Spec, SpecTeacher
from kdjax.training.state import TrainState
from kdjax.training.structure import join
from kdjax.types import Batch


class Seen(NamedTuple):
    """What a batch looks like.

    Attributes:
      views: name of a view -> normalised images.
      labels: [batch] int32, 0 where an example has none.
      targets: what label losses see, [batch] int32 or [batch, classes].
    """

    views: dict
    labels: Any
    targets: Any


def see(fixed: Fixed, batch: Batch, config: Mapping, spec: Spec) -> Seen:
    """Makes resident and streamed batches alike; every view is drawn once, whoever looks at it."""
    held = augment.materialize(fixed.arrays, batch)
    visit = batch.epoch if batch.visit is None else batch.visit
    labels, targets = _targets(held, spec)
    views = {}
    for view in dict.fromkeys((spec.view, *(teacher.view for teacher in spec.teachers))):
        shared = {"view": view, "stored": spec.stored}
        if not view_names.parse(view).mix:
            views[view] = augment.render(*held[:2], batch.index, visit, config["seed"], train=True, **shared)
            continue
        other = augment.materialize_partners(fixed.arrays, batch)
        own, partner = (held[1], batch.index), (other[1], batch.partner)
        views[view], kept = augment.mixed(held[0], own, partner, visit, config["seed"], **shared)
        if view == spec.view:
            targets = _mixed_targets(targets, _targets(other, spec)[1], kept, spec)
    return Seen(views, labels, targets)


def _targets(held: tuple, spec: Spec) -> tuple:
    """Integer labels, and what label losses see; an example without a label is masked there."""
    labels = jnp.maximum(held[2], 0)
    return labels, held[3] if spec.targets == "soft" else labels


def _mixed_targets(own, other, kept, spec: Spec):
    """Targets mix as images do."""
    if spec.targets != "soft":
        own, other = (jax.nn.one_hot(labels, spec.num_classes, dtype=kept.dtype) for labels in (own, other))
    part = kept[:, None].astype(own.dtype)
    return part * own + (1 - part) * other


def run_teachers(
    fixed: Fixed, views: Mapping, batch: Batch, config: Mapping, spec: Spec, axis_name: str | None
) -> dict[str, dict]:
    """Teachers run outside the gradient, each on its view; in eval mode unless the config wants batch statistics."""
    outputs, by_batch = {}, spec.teacher_batch_norm == "batch"
    keys = _example_keys(config["seed"], batch) if by_batch else None
    rngs = {"dropout": keys[0]} if by_batch else None  # other units in every batch and on every device, as a student's
    for teacher in spec.teachers:
        output = _run_teacher(
            teacher,
            fixed.teachers[teacher.name],
            views[teacher.view],
            train=by_batch,
            axis_name=axis_name if by_batch else None,
            rngs=rngs,
            keys=keys,
        )
        own = config["teachers"][teacher.name]
        outputs[teacher.name] = {
            "logits": _read_logits(output.logits, teacher, own["temperature"]),
            "weight": own["weight"],
            "output": _frozen(output),
            "norms": norms(teacher.model, fixed.teachers[teacher.name]),
        }
    return outputs


def _run_teacher(teacher: SpecTeacher, variables: Mapping, images, **options):
    try:
        return models.call(teacher.model, variables, images, **options)[0]
    except (flax.errors.FlaxError, TypeError, ValueError) as error:
        shape = "x".join(map(str, images.shape[1:]))
        raise UserError(
            f"teacher '{teacher.name}' cannot see images of {shape}, the student's; name one that was trained on such "
            f"images, or set config.data.size ({type(error).__name__}: {str(error).splitlines()[0]})"
        ) from error


def _read_logits(logits, teacher: SpecTeacher, temperature):
    """A teacher's logits as losses read them: of the data's classes, at the teacher's own temperature."""
    logits = lax.stop_gradient(logits)
    if teacher.output == "clipped_logits":  # the outputs themselves estimate probabilities
        logits = jnp.log(jnp.clip(logits, 1e-6, 1.0))
    if teacher.classes:  # a softmax over fewer columns is renormalised by itself
        logits = logits[:, jnp.asarray(teacher.classes)]
    return logits / temperature


def join_teachers(teachers: Mapping[str, dict], batch: Batch, config: Mapping, spec: Spec) -> dict | None:
    """Makes one teacher of several for the losses that read logits alone; None where they are means over teachers."""
    same_classes = len({teacher["logits"].shape for teacher in teachers.values()}) == 1
    if spec.ensemble == "losses" or len(teachers) < 2 or not same_classes:
        return None
    logits = jnp.stack([teacher["logits"] for teacher in teachers.values()])
    weights = jnp.stack([jnp.asarray(teacher["weight"], logits.dtype) for teacher in teachers.values()])
    shares = weights / jnp.sum(weights)
    if spec.ensemble == "logits":
        joined = jnp.tensordot(shares, logits, 1)
    elif spec.ensemble == "probs":
        logs = jax.nn.log_softmax(logits) + jnp.log(shares)[:, None, None]
        joined = jax.nn.logsumexp(logs, axis=0)
    else:
        visit = batch.epoch if batch.visit is None else batch.visit
        drawn = randomness.unit(randomness.bits(batch.index, visit, config["seed"], "teacher", 1, jnp)[:, 0], jnp)
        chosen = jnp.sum(drawn[:, None] >= jnp.cumsum(shares)[:-1], axis=1)
        joined = jnp.take_along_axis(logits, chosen[None, :, None], axis=0)[0]
    return {**next(iter(teachers.values())), "logits": joined, "weight": jnp.ones(())}


def _frozen(output):
    """An output outside the gradient; by hand, since a tree's mappings come back in the order of their keys."""
    pooled = None if output.pooled is None else lax.stop_gradient(output.pooled)
    features = {name: lax.stop_gradient(leaf) for name, leaf in output.features.items()}
    return output._replace(logits=lax.stop_gradient(output.logits), features=features, pooled=pooled)


def norms(model: nn.Module | models.FeatureExtractor, variables: Mapping) -> dict[str, tuple]:
    """Stage -> (scale, bias) of the BatchNorm before its ReLU, for a network that names them."""
    module = model.module if isinstance(model, models.FeatureExtractor) else model
    paths = module.preact_norms() if hasattr(module, "preact_norms") else {}
    found = {}
    for stage, path in paths.items():
        layer = functools.reduce(lambda tree, part: tree[part], path.split("/"), variables["params"])
        found[stage] = layer["scale"], layer["bias"]
    return found


def run_student(params, state: TrainState, images, batch: Batch, config: Mapping, spec: Spec, axis_name: str):
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


def example_inputs(spec: Spec, variables: Mapping, teachers: Mapping, numbers: Mapping, input_shape: tuple) -> dict:
    """Returns what losses are offered for two blank images: to be traced for its shapes."""
    images, two = jnp.zeros((2, *input_shape)), jnp.zeros(2, jnp.int32)
    config = join(spec.structure, numbers)
    output, _ = models.call(spec.model, variables, images, train=False)
    batch = {"logits": output.logits, "student_logits": output.logits, "labels": two, "index": two, "mask": two == 0}
    views = dict.fromkeys((teacher.view for teacher in spec.teachers), images)
    blank = Batch(index=two, epoch=two[0], mask=two == 0, labelled=two == 0)
    taught = run_teachers(Fixed(teachers, None, numbers), views, blank, config, spec, None)
    own = {
        "classes": two,
        "axis_name": None,
        "teachers": taught,
        "output": output,
        "epoch": two[0],
        "seed": config["seed"],
    }
    return {**batch, **own}

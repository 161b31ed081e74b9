"""What a step sees before any loss: images, teachers' outputs, the student's."""

import functools
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from kdjax import models
from kdjax.data import augment
from kdjax.training import start
from kdjax.training.spec import Fixed, Spec
from kdjax.training.state import TrainState
from kdjax.training.structure import join
from kdjax.types import Batch


def see(fixed: Fixed, batch: Batch, config: Mapping, spec: Spec):
    """Makes resident and streamed batches alike: augmented images, integer labels, and what label losses see."""
    images, rows, labels, soft = augment.materialize(fixed.arrays, batch)
    images = augment.render(
        images, rows, batch.index, batch.epoch, config["seed"], view=spec.view, stored=spec.stored, train=True
    )
    return images, labels, soft if spec.targets == "soft" else labels


def run_teachers(fixed: Fixed, images, config: Mapping, spec: Spec) -> dict[str, dict]:
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
    taught = run_teachers(Fixed(teachers, None, numbers), images, config, spec)
    own = {
        "classes": two,
        "axis_name": None,
        "teachers": taught,
        "output": output,
        "epoch": two[0],
        "seed": config["seed"],
    }
    return {**batch, **own}

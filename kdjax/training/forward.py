"""What a step computes before any loss: views of the images, the outputs of the teachers and of the student."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.errors
import jax
import jax.numpy as jnp
from jax import lax

from kdjax import models
from kdjax.data.views import augment
from kdjax.data.views import names as view_names
from kdjax.distillation.ensembles import make_ensemble
from kdjax.distillation.inputs import Head, LossInputs, TeacherOutput
from kdjax.errors import UserError
from kdjax.randomness import KEY_STREAMS
from kdjax.training.freezing import stop_gradients
from kdjax.training.spec import Fixed, Model, Spec, SpecTeacher, StepContext
from kdjax.training.state import TrainState
from kdjax.training.structure import combine
from kdjax.types import Array, Batch, MaterializedBatch, ModelOutput, TopK


class BatchViews(NamedTuple):
    """A batch as the networks and the losses get it.

    Attributes:
      images: View -> [batch, ...] normalised images.
      labels: [batch] int32, 0 where an example has none.
      targets: What losses take as labels, [batch] int32 or [batch, classes].
    """

    images: dict[str, Array]
    labels: Array
    targets: Array


class NetworkOutput(NamedTuple):
    """What one teacher's network computes for a batch, before a student's config reads it.

    Attributes:
      output: The network's whole output; its logits alone where they come from the cache.
      norms: Stage -> (scale, bias) of the BatchNorm before the stage's ReLU, where the network names them.
      held_out: [batch] bool, whether it was not trained on the example; None where no config asks for that.
      head: (kernel [dim, classes], bias [classes]) of its linear classifier, None without one.
    """

    output: ModelOutput
    norms: dict[str, tuple[Array, Array]]
    held_out: Array | None = None
    head: Head | None = None


class Prepared(NamedTuple):
    """What a step computes before any student: the members of a population that share it compute it once.

    Attributes:
      views: The batch as the networks and the losses get it.
      networks: Name of a teacher -> what its network computes.
    """

    views: BatchViews
    networks: dict[str, NetworkOutput]


def prepare(fixed: Fixed, context: StepContext) -> Prepared:
    """Makes the views of a batch and runs the teachers on them, outside the gradient."""
    views = make_views(fixed, context)
    return Prepared(views, run_networks(fixed, views.images, context))


def make_views(fixed: Fixed, context: StepContext) -> BatchViews:
    """Makes every view of a batch, resident or streamed; networks that are shown the same view share its draws."""
    batch, spec, seed = context.batch, context.spec, context.config["order_seed"]
    own = augment.materialize(fixed.arrays, batch)
    labels, targets = _targets(own, spec)
    images = {}
    for view in dict.fromkeys((spec.view, *(teacher.view for teacher in spec.teachers if teacher.runs))):
        shared = {"view": view, "stored": spec.stored}
        if not view_names.parse(view).mix:
            options = {"train": True, **shared}
            images[view] = augment.render(own.images, own.rows, batch.index, context.visit, seed, **options)
            continue
        other = augment.materialize_partners(fixed.arrays, batch)
        pair = (own.rows, batch.index), (other.rows, batch.partner)
        images[view], share = augment.mixed(own.images, *pair, context.visit, seed, **shared)
        if view == spec.view:
            targets = _mixed_targets(targets, _targets(other, spec)[1], share, spec)
    return BatchViews(images, labels, targets)


def _targets(examples: MaterializedBatch, spec: Spec) -> tuple[Array, Array]:
    """Returns integer labels, and what losses take as labels; an example without a label is masked there."""
    labels = jnp.maximum(examples.labels, 0)
    return labels, examples.soft if spec.targets == "soft" else labels


def _mixed_targets(own: Array, other: Array, share: Array, spec: Spec) -> Array:
    """Mixes targets as the images are mixed."""
    if spec.targets != "soft":
        own, other = (jax.nn.one_hot(labels, spec.num_classes, dtype=share.dtype) for labels in (own, other))
    part = share[:, None].astype(own.dtype)
    return part * own + (1 - part) * other


def run_networks(fixed: Fixed, images: Mapping[str, Array], context: StepContext) -> dict[str, NetworkOutput]:
    """Runs the teachers' networks outside the gradient, each on its view, or reads their logits from the cache.

    They run in evaluation mode unless the config asks for batch statistics.

    Args:
      fixed: Has the teachers' variables and the cached logits.
      images: View -> [batch, ...] images.
      context: What the step reads.
    """
    by_batch = context.spec.teacher_batch_norm == "batch"
    options: dict[str, Any] = {"train": by_batch}
    if by_batch:
        keys = example_keys(context.config["seed"], context.batch)
        # The first example's key, so that dropout differs from batch to batch and from device to device.
        options |= {"axis_name": context.axis_name, "rngs": {"dropout": keys[0]}, "keys": keys}
    outputs = {}
    for teacher in context.spec.teachers:
        held_out = fixed.held_out.get(teacher.name)
        held_out = None if held_out is None else held_out[context.batch.index]
        if teacher.model is None:
            outputs[teacher.name] = NetworkOutput(ModelOutput(_known_logits(fixed, teacher, context)), {}, held_out)
            continue
        variables = fixed.teachers[teacher.name]
        output = run_teacher(teacher.label, teacher.model, variables, images[teacher.view], **options)
        norms = preact_norms(teacher.model, variables)
        head = head_of(teacher.model, variables["params"])
        outputs[teacher.name] = NetworkOutput(_without_gradient(output), norms, held_out, head)
    return outputs


def _known_logits(fixed: Fixed, teacher: SpecTeacher, context: StepContext) -> Array | TopK:
    """Returns the logits of a teacher that the step does not run, from the cache, a file or the batch."""
    batch = context.batch
    if teacher.stored is None:
        return fixed.logits[teacher.name][batch.index]
    if teacher.in_batch:
        found = (batch.outputs or {})[teacher.label]
    else:
        views = teacher.stored.views
        place = (batch.index, jnp.broadcast_to(context.visit % views, batch.index.shape)) if views else batch.index
        found = jax.tree.map(lambda leaf: leaf[place], fixed.logits[teacher.name])
    return jax.tree.map(_at_least_float32, found)


def _at_least_float32(leaf: Array) -> Array:
    floating = jnp.issubdtype(leaf.dtype, jnp.floating)
    return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)) if floating else leaf


def read_teachers(networks: Mapping[str, NetworkOutput], context: StepContext) -> dict[str, TeacherOutput]:
    """Returns the teachers' outputs as the losses of one config read them: with its weights and temperatures."""
    outputs = {}
    for teacher in context.spec.teachers:
        network, fields = networks[teacher.name], context.config["teachers"][teacher.name]
        logits = _read_logits(network.output.logits, teacher, fields["temperature"])
        head = _read_head(network.head, teacher, fields["temperature"])
        outputs[teacher.name] = TeacherOutput(
            logits, fields["weight"], network.output, network.norms, network.held_out, head
        )
    return outputs


def run_teacher(name: str, model: Model, variables: Mapping[str, Any], images: Array, **options: Any) -> ModelOutput:
    """Runs a teacher's network; a refusal of the images names the teacher.

    Args:
      name: Its name in config.teachers.
      model: Its network.
      variables: Its variables.
      images: [batch, ...] images.
      **options: Further arguments of `models.call`.

    Raises:
      UserError: The network cannot take the images.
    """
    try:
        return models.call(model, variables, images, **options)[0]
    except (flax.errors.FlaxError, TypeError, ValueError) as error:
        shape = "x".join(map(str, images.shape[1:]))
        raise UserError(
            f"teacher '{name}' cannot see images of {shape}, the student's; name one that was trained on such "
            f"images, or set config.data.size ({type(error).__name__}: {str(error).splitlines()[0]})"
        ) from error


def _read_logits(logits: Array | TopK, teacher: SpecTeacher, temperature: Array) -> Array | TopK:
    """Returns a teacher's logits as losses read them: the data's classes, at the teacher's own temperature."""
    logits = lax.stop_gradient(logits)
    if isinstance(logits, TopK):  # which has neither, as `check_stored_teachers` sees to
        return logits
    if teacher.output == "clipped_logits":  # the outputs themselves estimate probabilities
        logits = jnp.log(jnp.clip(logits, 1e-6, 1.0))
    if teacher.classes:  # a softmax over fewer columns normalises itself
        logits = logits[:, jnp.asarray(teacher.classes)]
    return logits / temperature


def _read_head(head: Head | None, teacher: SpecTeacher, temperature: Array) -> Head | None:
    """Returns the classifier that makes a teacher's logits as losses read them, None where a linear one does not."""
    if head is None or teacher.output == "clipped_logits":
        return None
    kernel, bias = (lax.stop_gradient(leaf) for leaf in head)
    columns = jnp.asarray(teacher.classes or range(bias.shape[0]))
    return kernel[:, columns] / temperature, bias[columns] / temperature


def _without_gradient(output: ModelOutput) -> ModelOutput:
    """Stops gradients leaf by leaf, since jax.tree.map would sort the features, which are in order of depth."""
    pooled = None if output.pooled is None else lax.stop_gradient(output.pooled)
    features = {name: lax.stop_gradient(leaf) for name, leaf in output.features.items()}
    return output._replace(logits=lax.stop_gradient(output.logits), features=features, pooled=pooled)


def preact_norms(model: Model, variables: Mapping[str, Any]) -> dict[str, tuple[Array, Array]]:
    """Returns stage -> (scale, bias) of the BatchNorm before its ReLU, for a network that names these layers."""
    module = model.module if isinstance(model, models.FeatureExtractor) else model
    paths = module.preact_norms() if hasattr(module, "preact_norms") else {}
    found = {}
    for stage, path in paths.items():
        layer = functools.reduce(lambda tree, part: tree[part], path.split("/"), variables["params"])
        found[stage] = layer["scale"], layer["bias"]
    return found


def head_of(model: Model, params: Mapping[str, Any]) -> Head | None:
    """Returns kernel and bias of the linear classifier of the mean of a network's last map.

    It is the layer that the network's attribute HEAD names, 'fc' else.

    Args:
      model: The network.
      params: Its parameters.

    Returns:
      (kernel [dim, classes], bias [classes]), or None if there is no such layer, or if it reads something else, which
      a network says by READS_MEAN = False.
    """
    module = model.module if isinstance(model, models.FeatureExtractor) else model
    if not getattr(module, "READS_MEAN", True):
        return None
    layer: Any = params
    for part in getattr(module, "HEAD", "fc").split("/"):
        layer = layer.get(part, {}) if isinstance(layer, Mapping) else {}
    found = tuple(layer.get(name) for name in ("kernel", "bias"))
    return found if [jnp.ndim(leaf) for leaf in found if leaf is not None] == [2, 1] else None


def ensemble_of(teachers: Mapping[str, TeacherOutput], context: StepContext) -> TeacherOutput | None:
    """Returns one teacher made of all, None where each loss is averaged over the teachers instead."""
    seed = context.config["order_seed"]
    return make_ensemble(teachers, context.spec.ensemble, context.batch.index, context.visit, seed)


def run_student(
    params: Mapping[str, Any], state: TrainState, images: Array, context: StepContext
) -> tuple[ModelOutput, Any]:
    """Runs the network that is trained; returns its output and its batch statistics after the call."""
    seed, spec = context.config["seed"], context.spec
    return models.call(
        spec.model,
        {"params": stop_gradients(params, spec.freezing), "batch_stats": state.batch_stats},
        images,
        train=spec.freezing.network_trains,
        axis_name=context.sync_axis,
        rngs={"dropout": dropout_key(seed, state.step, context.axis_name)},
        keys=example_keys(seed, context.batch),
        unbiased=spec.unbiased_variance,
    )


def loss_inputs(
    output: ModelOutput,
    variables: Mapping[str, Any],
    views: BatchViews,
    teachers: dict[str, TeacherOutput],
    ensemble: TeacherOutput | None,
    context: StepContext,
) -> LossInputs:
    """Returns what the losses of a step are offered; `variables` are the student's after the forward pass."""
    return LossInputs(
        output=output,
        targets=views.targets,
        labels=views.labels,
        index=context.batch.index,
        mask=context.batch.mask,
        labelled=context.batch.labelled,
        epoch=context.batch.epoch,
        seed=context.config["seed"],
        teachers=teachers,
        ensemble=ensemble,
        axis_name=context.axis_name,
        sync_axis=context.sync_axis,
        unbiased=context.spec.unbiased_variance,
        parameters=variables["params"],
        batch_statistics=variables.get("batch_stats", {}),
        head=head_of(context.spec.model, variables["params"]),
    )


def example_keys(seed: Array, batch: Batch) -> Array:
    """Returns one key for each example, from (seed, epoch, example) alone, for what a network draws (drop-path)."""
    key = jax.random.key(jnp.asarray(seed, jnp.uint32), impl="threefry2x32")
    key = jax.random.fold_in(jax.random.fold_in(key, KEY_STREAMS["example_keys"]), batch.epoch)
    return jax.vmap(lambda example: jax.random.fold_in(key, example))(batch.index)


def dropout_key(seed: Array, step: Array, axis_name: str | None) -> Array:
    """Returns a device's key for dropout: the one draw that depends on the device."""
    key = jax.random.fold_in(jax.random.key(seed), KEY_STREAMS["dropout"])
    key = jax.random.fold_in(key, step)
    return jax.random.fold_in(key, lax.axis_index(axis_name))


def blank_inputs(
    spec: Spec,
    variables: Mapping[str, Any],
    teachers: Mapping[str, Any],
    numbers: Mapping[str, Any],
    input_shape: tuple[int, ...],
) -> LossInputs:
    """Returns what the losses are offered for two blank images; to be traced for its shapes.

    Args:
      spec: What shapes the step.
      variables: The student's variables.
      teachers: Name -> variables of each teacher.
      numbers: The numbers of the config.
      input_shape: Shape of one image.
    """
    images, two = jnp.zeros((2, *input_shape)), jnp.zeros(2, jnp.int32)
    output, _ = models.call(spec.model, variables, images, train=False)
    brought = {teacher.name: jnp.zeros((2, teacher.num_classes)) for teacher in spec.teachers if teacher.in_batch}
    blank = Batch(index=two, epoch=two[0], mask=two == 0, labelled=two == 0, outputs=brought)
    context = StepContext(blank, combine(spec.structure, numbers), spec, None)
    views = BatchViews(dict.fromkeys((teacher.view for teacher in spec.teachers), images), two, two)
    logits = {teacher.name: _blank_logits(teacher) for teacher in spec.teachers if teacher.cached}
    networks = run_networks(Fixed(dict(teachers), None, dict(numbers), logits), views.images, context)
    return loss_inputs(output, variables, views, read_teachers(networks, context), None, context)


def _blank_logits(teacher: SpecTeacher) -> Array | TopK:
    """Returns the cached or stored logits of one blank image."""
    views, top = (teacher.stored.views, teacher.stored.top) if teacher.stored else (0, 0)
    shape = (1, *([views] if views else []), top or teacher.num_classes)
    return TopK(jnp.zeros(shape, jnp.int32), jnp.zeros(shape)) if top else jnp.zeros(shape)


def draws_dropout(spec: Spec, variables: Mapping[str, Any], input_shape: tuple[int, ...]) -> bool:
    """Whether training draws from the dropout stream; found by tracing the student without a key for it.

    Args:
      spec: What shapes the step.
      variables: The student's variables.
      input_shape: Shape of one image.
    """
    blank = jax.ShapeDtypeStruct((2, *input_shape), jax.dtypes.canonicalize_dtype(float))

    def run(images: Array) -> Any:
        keys = jax.random.split(jax.random.key(0), 2)
        return models.call(spec.model, variables, images, train=spec.freezing.network_trains, keys=keys)

    try:
        jax.eval_shape(run, blank)
    except UserError as error:
        if isinstance(error.__cause__, flax.errors.InvalidRngError):
            return True
        raise
    return False

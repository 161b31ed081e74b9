"""From a config to a plan: resolved, checked, its data and teachers loaded, ready to be compiled."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from kdjax import config as schema
from kdjax import models
from kdjax.data import Dataset, load_dataset, make_order, resolve_view
from kdjax.data.overlap import check_overlap
from kdjax.data.views import names as view_names
from kdjax.distillation import distillers
from kdjax.errors import UserError
from kdjax.store import Store
from kdjax.training import forward, parallel, steps
from kdjax.training import state as train_state
from kdjax.training.evaluation import stream_if_needed
from kdjax.training.initialization import check_head, start_from
from kdjax.training.manifest import make_manifest
from kdjax.training.networks import Network, build, load_network
from kdjax.training.spec import SpecTeacher
from kdjax.training.structure import join, part
from kdjax.training.teachers import Teacher, check_classes, check_splits, load_teachers
from kdjax.types import ModelOutput


class Plan(NamedTuple):
    """A run that has been checked and is ready to be compiled.

    Attributes:
      config: resolved.
      dataset: loaded.
      teachers: name -> Teacher.
      spec: what shapes the step of training proper.
      warmup: what shapes the step of the phase before it, None without one.
      numbers: what the step takes as values.
      variables: the network before the first step, on the host.
      distiller: {'params', 'state'} of what the losses carry, before the first step, on the host.
      devices: of this process.
    """

    config: ConfigDict
    dataset: Dataset
    teachers: dict
    spec: steps.Spec
    warmup: steps.Spec | None
    numbers: dict
    variables: dict
    distiller: dict
    devices: tuple


def resolve(config: ConfigDict) -> ConfigDict:
    """Returns a checked copy of a config in which every default of losses and teachers is explicit."""
    config = ConfigDict(config.to_dict())
    schema.check(config)
    config.losses = ConfigDict(distillers.resolve_losses(config.losses.to_dict(), config.teachers.to_dict()))
    for name, teacher in config.teachers.items():
        classes = teacher.get("classes") or config.teacher_classes
        config.teachers[name] = ConfigDict({**schema.TEACHER, **teacher.to_dict(), "classes": classes})
    train_state.check(traced(config))
    return config


def make_plan(
    config: ConfigDict,
    store: Store,
    data_dir: str,
    devices: Sequence[jax.Device],
    teachers: dict[str, Teacher] | None = None,
) -> Plan:
    """Loads what a resolved config names and checks that it fits together, before anything compiles.

    Args:
      config: resolved.
      store, data_dir: where its teachers and its data are.
      devices: of this process.
      teachers: at hand, in the place of the store's.

    Raises:
      UserError: a teacher, data or batch size that is not there or does not fit the others.
    """
    parallel.check_batch_size("batch_size", config.batch_size, devices)
    parallel.check_batch_size("eval_batch_size", config.eval_batch_size, devices)
    teachers = load_teachers(config, store) if teachers is None else teachers
    dataset = stream_if_needed(load_dataset(config.data, data_dir), config.data.stream, devices)
    check_overlap(config.data.name, dataset.images, dataset.splits, config.data.allow_overlap)
    check_classes(config, teachers, dataset.num_classes, dataset.class_names)
    check_splits(config, dataset, teachers, data_dir)
    origin = load_network(store.find(config.init_from), config.init_checkpoint) if config.init_from else None
    return plan_with(config, dataset, teachers, devices, origin)


def plan_with(
    config: ConfigDict, dataset: Dataset, teachers: dict, devices: Sequence[jax.Device], origin: Network | None = None
) -> Plan:
    """Makes the plan of a resolved config for data, teachers and a network to start from that are at hand."""
    model = build(config.model.to_dict(), dataset.num_classes)
    input_shape = (1, *dataset.input_shape)
    models.check_features(model, input_shape)
    structure, numbers = part(traced(config))
    spec = steps.Spec(
        model=model,
        teachers=tuple(_spec_teacher(config, dataset, name, teacher) for name, teacher in teachers.items()),
        ensemble=config.ensemble,
        teacher_batch_norm=config.teacher_batch_norm,
        structure=structure,
        stored=dataset.stored,
        view=resolve_view(dataset, config.data.view),
        targets=config.data.targets,
        num_classes=dataset.num_classes,
        unlabelled=len(dataset.labelled_train) < len(dataset.splits["train"]),
        phase="main",
        terms=_main_terms(config),
        first_epoch=config.warmup.epochs,
        moves="all",
        steps_per_epoch=make_order(dataset, config.batch_size, config.seed).steps,
        sync_batch_norm=config.model.batch_norm == "global",
        unbiased_variance=config.model.running_variance == "unbiased",
        trainable=config.trainable,
        head=config.model.head,
        diagnostics=config.diagnostics,
    )
    variables = models.init_variables(model, input_shape, config.seed, config.model.init)
    check_head(config, variables)
    if origin:
        variables = start_from(variables, origin.variables, config.init_from, config.model.head)
    numbers = _as_arrays(numbers)
    warmup = spec._replace(phase="warmup", terms=tuple(config.warmup.losses), first_epoch=0, moves=config.warmup.trains)
    distiller = _first_distiller(config, dataset, spec, variables, teachers, numbers)
    phase = warmup if config.warmup.epochs else None
    return Plan(config, dataset, teachers, spec, phase, numbers, variables, distiller, tuple(devices))


def _spec_teacher(config: ConfigDict, dataset: Dataset, name: str, teacher: Teacher) -> SpecTeacher:
    """A teacher with its own view, that of all teachers, or the student's."""
    fields = config.teachers[name]
    field = f"config.teachers.{name}.view" if fields.view else "config.data.teacher_view"
    view = resolve_view(dataset, fields.view or config.data.teacher_view or config.data.view, field)
    if view_names.parse(view).mix and not view_names.parse(resolve_view(dataset, config.data.view)).mix:
        raise UserError(f"{field} '{view}' mixes examples, which config.data.view does not: let the student's mix too.")
    return SpecTeacher(name, teacher.model, teacher.output, view, tuple(fields.classes))


def _main_terms(config: ConfigDict) -> tuple[str, ...]:
    """All terms but those that belong to the warm-up alone: named there, and of no weight here."""
    return tuple(key for key, term in config.losses.items() if key not in config.warmup.losses or term.weight != 0)


def _first_distiller(
    config: ConfigDict, dataset: Dataset, spec, variables: dict, teachers: dict, numbers: dict
) -> dict:
    make_inputs = functools.partial(_example_inputs, dataset, spec, variables, teachers, numbers)
    return distillers.make_distiller(config.losses.to_dict()).init(config.seed, make_inputs, dataset)


def _example_inputs(dataset: Dataset, spec, variables: dict, teachers: dict, numbers: dict) -> dict:
    taught = {name: teacher.variables for name, teacher in teachers.items()}
    return forward.example_inputs(spec, variables, taught, numbers, dataset.input_shape)


def rehearse(plan: Plan) -> ModelOutput:
    """Shows networks and losses of a plan, those of both phases, the shapes of two blank images; computes nothing.

    Returns:
      Shapes of the network's output.

    Raises:
      UserError: a teacher that cannot see the images, or a loss that does not take what it would be given.
    """

    def look():
        inputs = _example_inputs(plan.dataset, plan.spec, plan.variables, plan.teachers, plan.numbers)
        terms = join(plan.spec.structure, plan.numbers)["losses"]
        for spec in filter(None, (plan.warmup, plan.spec)):
            chosen = {key: terms[key] for key in spec.terms}
            distiller = distillers.make_distiller(chosen, warming_up=spec.phase == "warmup")
            distiller.apply(plan.distiller, inputs, chosen)
        return inputs["output"]

    return jax.eval_shape(look)


def traced(config: ConfigDict) -> dict:
    """Returns what a step reads of a resolved config, floats as floats and the seed as a NumPy scalar."""
    sections = {name: config[name] for name in schema.TRACED}
    sections = {name: value.to_dict() if isinstance(value, ConfigDict) else value for name, value in sections.items()}
    # Of a teacher only its weight and temperature are numbers; its run's name must not shape the compilation.
    sections["teachers"] = {
        name: {"weight": float(teacher["weight"]), "temperature": float(teacher["temperature"])}
        for name, teacher in sections["teachers"].items()
    }
    # What shapes a loss's trainable part is structure, floats and all.
    sections["losses"] = {
        key: {**term, "adapter": tuple(sorted(term["adapter"].items()))} if "adapter" in term else term
        for key, term in sections["losses"].items()
    }
    weights = {name: float(weight) for name, weight in sections["warmup"]["losses"].items()}
    rate = float(sections["warmup"]["learning_rate"])
    sections["warmup"] = {**sections["warmup"], "losses": weights, "learning_rate": rate}
    sections["optimizer"] = _floats_like_defaults(sections["optimizer"], schema.defaults().optimizer)
    sections["schedule"] = _floats_like_defaults(sections["schedule"], schema.defaults().schedule)
    return {**sections, "seed": np.uint32(config.seed), "epochs": config.epochs}


def _floats_like_defaults(section: dict, defaults: ConfigDict) -> dict:
    return {name: float(value) if isinstance(defaults[name], float) else value for name, value in section.items()}


def _as_arrays(numbers: dict) -> dict:
    dtype = jax.dtypes.canonicalize_dtype(float)
    return jax.tree.map(lambda leaf: np.asarray(leaf, dtype if isinstance(leaf, float) else None), numbers)


def manifest_of(plan: Plan) -> dict:
    """Returns the manifest of a planned run."""
    records = {name: teacher.record for name, teacher in plan.teachers.items()}
    scope = models.batch_norm_scope(plan.spec.model, (1, *plan.dataset.input_shape))
    if scope == "global" and not plan.spec.sync_batch_norm:
        scope = "per_device"
    elif scope == "per_device" and plan.spec.sync_batch_norm:
        logging.warning("%s keeps statistics of its own, which are taken per device.", plan.config.model.name)
    parameters = models.count_parameters(plan.variables)
    return make_manifest(plan.config.to_dict(), plan.dataset, records, scope, parameters)

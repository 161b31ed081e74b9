"""From a config to a plan: resolved, checked, its data and teachers loaded, ready to be compiled."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from kdjax import config as schema
from kdjax import models, own_code
from kdjax.data import Dataset, load_dataset, make_order, resolve_view, split_hash
from kdjax.data.overlap import check_overlap
from kdjax.data.views import names as view_names
from kdjax.distillation.distillers import make_distiller
from kdjax.distillation.inputs import LossInputs
from kdjax.distillation.methods import method_of
from kdjax.distillation.terms import Term, make_terms, resolve_losses, with_new_parameters
from kdjax.errors import UserError
from kdjax.store import Run, Store
from kdjax.store.content import variables_hash
from kdjax.training import forward, parallel, processes
from kdjax.training import state as train_state
from kdjax.training.evaluation import stream_if_needed
from kdjax.training.freezing import check_head, frozen_parts, make_freezing
from kdjax.training.initialization import in_body, initialize_from
from kdjax.training.manifest import make_manifest
from kdjax.training.networks import Network, build, load_network
from kdjax.training.reuse import fitted_to_teacher, with_teachers_classifier
from kdjax.training.schedules import find_schedule
from kdjax.training.spec import Spec, SpecTeacher
from kdjax.training.stored_teachers import check_stored_teachers, stored_spec
from kdjax.training.structure import combine, partition
from kdjax.training.teacher_temperatures import DIGITS, fitted_temperatures
from kdjax.training.teachers import (
    LoadedTeachers,
    Teacher,
    check_classes,
    check_splits,
    freeze,
    held_out_rows,
    load_teachers,
)
from kdjax.types import Config, Device, ModelOutput


class Plan(NamedTuple):
    """A run that has been checked and is ready to be compiled.

    Attributes:
      config: Resolved config.
      dataset: Loaded data.
      teachers: Name -> Teacher.
      spec: What shapes the step of training proper.
      warmup: What shapes the step of the warm-up, the phase before it; None without one.
      numbers: The numbers of the config, which the step takes as values.
      variables: The network's variables before the first step, on the host.
      distiller: {'params', 'state'} of the losses' adapters before the first step, on the host.
      held_out: Name of a teacher -> [rows] bool, which rows of the data set it was not trained on, for the ensemble
        'held_out'; {} for the others.
      devices: Devices of this process.
      origin: Hash of the weights of config.init_from, '' without it.
      model_args: Arguments that the network was built with.
    """

    config: Config
    dataset: Dataset
    teachers: dict[str, Teacher]
    spec: Spec
    warmup: Spec | None
    numbers: dict[str, Any]
    variables: dict[str, Any]
    distiller: dict[str, Any]
    held_out: dict[str, np.ndarray]
    devices: tuple[Device, ...]
    origin: str = ""
    model_args: Mapping[str, Any] = {}

    @property
    def epochs(self) -> int:
        """Epochs of the whole run, the warm-up included."""
        return self.config.warmup.epochs + self.config.epochs

    def spec_at(self, epoch: int) -> Spec:
        """Returns the spec of the phase that an epoch, counted from 0, belongs to."""
        return self.warmup if self.warmup is not None and epoch < self.config.warmup.epochs else self.spec


def resolve(config: Config) -> Config:
    """Returns a checked copy of a user's config in which every default of losses and teachers is explicit."""
    own_code.note_named(config.to_dict())
    config = ConfigDict(config.to_dict())
    schema.check(config)
    config.losses = ConfigDict(resolve_losses(config.losses.to_dict(), config.teachers.to_dict()))
    for name, teacher in config.teachers.items():
        classes = teacher.get("classes") or config.teacher_classes
        config.teachers[name] = ConfigDict({**schema.TEACHER, **teacher.to_dict(), "classes": classes})
    train_state.check(traced(config))
    return config


def completed(config: Mapping) -> dict:
    """Returns a stored config, as plain mappings, with the hyper-parameters that its losses took on since."""
    return {**config, "losses": with_new_parameters(config["losses"])}


def make_plan(
    config: Config,
    store: Store,
    data_dir: str,
    devices: Sequence[Device],
    teachers: dict[str, Teacher] | None = None,
    loaded: LoadedTeachers | None = None,
) -> Plan:
    """Loads what a resolved config names and checks that it fits together, before anything compiles.

    Args:
      config: Resolved config.
      store: The store that has its teachers.
      data_dir: Directory of the data sets that are not embedded.
      devices: Devices of this process.
      teachers: Teachers to use in place of the store's.
      loaded: Teachers that other plans have loaded; see `load_teachers`.

    Raises:
      UserError: A teacher or data is missing, or a teacher, the data or a batch size does not fit the others.
    """
    parallel.check_batch_size("batch_size", config.batch_size, devices)
    parallel.check_batch_size("eval_batch_size", config.eval_batch_size, devices)
    teachers = load_teachers(config, store, loaded) if teachers is None else teachers
    with processes.writer_first():  # a data set may be downloaded to a folder that all of them share
        dataset = load_dataset(config.data, data_dir)
    dataset = stream_if_needed(dataset, config.data.stream, devices)
    allow = config.data.allow_overlap
    check_overlap(dataset.name, dataset.images, dataset.splits, allow=allow, official=dataset.official)
    check_classes(config, teachers, dataset.num_classes, dataset.class_names)
    check_stored_teachers(config, dataset, teachers)
    check_splits(config, dataset, teachers, data_dir)
    origin = load_network(_origin_of(config, store), config.init_checkpoint) if config.init_from else None
    held_out = held_out_rows(config, dataset, teachers, data_dir)
    return plan_with(config, dataset, teachers, devices, origin, held_out)


def _origin_of(config: Config, store: Store) -> Run:
    """Returns the run whose weights a run starts from."""
    try:
        return store.find(config.init_from)
    except UserError as error:
        raise UserError(f"config.init_from: {error} Train that run first, or name another.") from error


def plan_with(
    config: Config,
    dataset: Dataset,
    teachers: Mapping[str, Teacher],
    devices: Sequence[Device],
    origin: Network | None = None,
    held_out: Mapping[str, np.ndarray] | None = None,
) -> Plan:
    """Makes the plan of a resolved config for data and teachers that are at hand.

    Args:
      config: Resolved config.
      dataset: Loaded data.
      teachers: Name -> Teacher.
      devices: Devices of this process.
      origin: The network that the student starts from, None for freshly drawn weights.
      held_out: What `held_out_rows` returned, None for the other ensembles.
    """
    input_shape = (1, *dataset.input_shape)
    described = fitted_to_teacher(config, teachers, input_shape)
    model = build(described, dataset.num_classes)
    models.check_features(model, input_shape)
    variables = models.init_variables(model, input_shape, config.seed, config.model.init)
    models.check_classes(model, variables, input_shape, dataset.num_classes)
    check_head(config, variables)
    if origin:
        begun = in_body(origin.variables) if config.model.name in models.WRAPPERS else origin.variables
        variables = initialize_from(variables, begun, config.init_from, config.model.head)
    variables = with_teachers_classifier(variables, config, teachers)
    teachers = {name: freeze(teacher, config, variables, input_shape) for name, teacher in teachers.items()}
    structure, numbers = partition(traced(config))
    for name, temperature in fitted_temperatures(config, dataset, teachers, devices).items():
        numbers["teachers"][name]["temperature"] = temperature
    numbers = _as_arrays(numbers)
    terms = _terms(config, _main_losses(config))
    _check_gathered(config)
    spec = Spec(
        model=model,
        teachers=_spec_teachers(config, dataset, teachers),
        ensemble=config.ensemble,
        teacher_batch_norm=config.teacher_batch_norm,
        structure=structure,
        schedule=find_schedule(config.schedule.name, config.schedule.args),
        stored=dataset.stored,
        view=resolve_view(dataset, config.data.view),
        targets=config.data.targets,
        num_classes=dataset.num_classes,
        unlabelled=len(dataset.labelled_train) < len(dataset.splits["train"]),
        phase="main",
        terms=terms,
        freezing=make_freezing(config, terms, frozen_parts(model), warming_up=False),
        first_epoch=config.warmup.epochs,
        steps_per_epoch=make_order(dataset, config.batch_size, schema.order_seed(config)).steps,
        sync_batch_norm=config.model.batch_norm == "global",
        unbiased_variance=config.model.running_variance == "unbiased",
        diagnostics=config.diagnostics,
        platform=devices[0].platform,
    )
    distiller = _initial_distiller(config, dataset, spec, variables, teachers, numbers)
    warmup = _warmup_spec(config, spec)
    held_out = dict(held_out or {})
    begun_from = variables_hash(origin.variables) if origin else ""
    return Plan(
        config,
        dataset,
        teachers,
        spec,
        warmup,
        numbers,
        variables,
        distiller,
        held_out,
        tuple(devices),
        begun_from,
        described["args"],
    )


def _check_gathered(config: Config) -> None:
    """Refuses a loss whose memory is filled by a warm-up that the config does not have."""
    for key, term in config.losses.items():
        if method_of(term["loss"]).gathers and key not in config.warmup.losses:
            raise UserError(
                f"config.losses.{key}: '{term['loss']}' reads what a warm-up gathers; set "
                f"config.warmup.epochs to 1, .trains to 'distiller' and .losses to {{'{key}': 1.0}}."
            )


def _warmup_spec(config: Config, spec: Spec) -> Spec | None:
    """Returns the spec of the phase before training proper, None without one."""
    if not config.warmup.epochs:
        return None
    terms = _terms(config, tuple(config.warmup.losses), warming_up=True)
    freezing = make_freezing(config, terms, frozen_parts(spec.model), warming_up=True)
    return spec._replace(phase="warmup", terms=terms, freezing=freezing, first_epoch=0)


def _spec_teachers(config: Config, dataset: Dataset, teachers: Mapping[str, Teacher]) -> tuple[SpecTeacher, ...]:
    """Returns the specs of all teachers; one whose logits are cached has no network, since the step runs none."""
    found = [_spec_teacher(config, dataset, name, teacher) for name, teacher in teachers.items()]
    terms = (*_terms(config, tuple(config.losses)), *_terms(config, tuple(config.warmup.losses), warming_up=True))
    return tuple(
        teacher._replace(model=None) if logits_suffice(teacher, config, dataset, terms) else teacher
        for teacher in found
    )


def logits_suffice(teacher: SpecTeacher, config: Config, dataset: Dataset, terms: Sequence[Term]) -> bool:
    """Whether a teacher's logits can be computed once: its view never changes, and nothing else of it is read.

    This follows from the config and the data alone, never from the memory that is free, so that resuming is exact.
    """
    fixed_view = view_names.parse(teacher.view) == view_names.View() and not dataset.streamed
    readers = [term for term in terms if term.loss.reads_teacher and term.teacher in ("", teacher.name)]
    logits_alone = all(term.loss.needs_logits_alone and term.evaluated.needs_logits_alone for term in readers)
    return fixed_view and config.teacher_batch_norm == "running" and logits_alone


def _spec_teacher(config: Config, dataset: Dataset, name: str, teacher: Teacher) -> SpecTeacher:
    """Returns the spec of a teacher; its view is its own, else that of all teachers, else the student's."""
    fields = config.teachers[name]
    if teacher.outputs is not None:
        stored, classes = stored_spec(teacher.outputs), teacher.num_classes or dataset.num_classes
        return SpecTeacher(name, None, teacher.output, "none", classes, tuple(fields.classes), stored)
    field = f"config.teachers.{name}.view" if fields.view else "config.data.teacher_view"
    view = resolve_view(dataset, fields.view or config.data.teacher_view or config.data.view, field)
    if view_names.parse(view).mix and not view_names.parse(resolve_view(dataset, config.data.view)).mix:
        raise UserError(f"{field} '{view}' mixes examples, which config.data.view does not: let the student's mix too.")
    return SpecTeacher(name, teacher.model, teacher.output, view, teacher.num_classes, tuple(fields.classes))


def _main_losses(config: Config) -> tuple[str, ...]:
    """Returns all losses but those of the warm-up alone, which are named there and have no weight here."""
    return tuple(key for key, term in config.losses.items() if key not in config.warmup.losses or term.weight != 0)


def _terms(config: Config, keys: Sequence[str], *, warming_up: bool = False) -> tuple[Term, ...]:
    entries = config.losses.to_dict()
    return make_terms({key: entries[key] for key in keys}, warming_up=warming_up)


def _initial_distiller(
    config: Config,
    dataset: Dataset,
    spec: Spec,
    variables: Mapping[str, Any],
    teachers: Mapping[str, Teacher],
    numbers: Mapping[str, Any],
) -> dict[str, Any]:
    """Draws the adapters of the losses of both phases."""
    make_inputs = functools.partial(_blank_inputs, dataset, spec, variables, teachers, numbers)
    return make_distiller(_terms(config, tuple(config.losses))).init(config.seed, make_inputs, dataset)


def _blank_inputs(
    dataset: Dataset,
    spec: Spec,
    variables: Mapping[str, Any],
    teachers: Mapping[str, Teacher],
    numbers: Mapping[str, Any],
) -> LossInputs:
    teacher_variables = {name: teacher.variables for name, teacher in teachers.items()}
    return forward.blank_inputs(spec, variables, teacher_variables, numbers, dataset.input_shape)


def rehearse(plan: Plan) -> ModelOutput:
    """Traces the networks and the losses of both phases of a plan on two blank images; computes nothing.

    Returns:
      Shapes of the network's output.

    Raises:
      UserError: A teacher cannot take the images, or a loss refuses what it would be given.
    """

    def trace() -> ModelOutput:
        inputs = _blank_inputs(plan.dataset, plan.spec, plan.variables, plan.teachers, plan.numbers)
        config_losses = combine(plan.spec.structure, plan.numbers)["losses"]
        for spec in filter(None, (plan.warmup, plan.spec)):
            make_distiller(spec.terms).apply(plan.distiller, inputs, config_losses)
        blank = jax.numpy.zeros((2, *plan.dataset.input_shape))
        for name in (teacher.name for teacher in plan.spec.teachers if teacher.cached):  # the step does not run these
            model = plan.teachers[name].model
            if model is not None:
                forward.run_teacher(name, model, plan.teachers[name].variables, blank, train=False)
        return inputs.output

    return jax.eval_shape(trace)


def traced(config: Config) -> dict[str, Any]:
    """Returns the sections of a resolved config that a step reads, floats as floats and the seed as a NumPy scalar."""
    sections = {name: config[name] for name in schema.TRACED}
    sections = {name: value.to_dict() if isinstance(value, ConfigDict) else value for name, value in sections.items()}
    # Weight and temperature only: the name of a teacher's run must not shape the compilation. `plan_with` replaces the
    # temperature of 1 that stands here for one that is fitted.
    sections["teachers"] = {
        name: {"weight": float(teacher["weight"]), "temperature": _temperature(teacher["temperature"])}
        for name, teacher in sections["teachers"].items()
    }
    # The hyper-parameters of an adapter are structure, floats included, since they may shape its layers.
    sections["losses"] = {
        key: {**term, "adapter": tuple(sorted(term["adapter"].items()))} if "adapter" in term else term
        for key, term in sections["losses"].items()
    }
    weights = {name: float(weight) for name, weight in sections["warmup"]["losses"].items()}
    rate = float(sections["warmup"]["learning_rate"])
    sections["warmup"] = {**sections["warmup"], "losses": weights, "learning_rate": rate}
    sections["optimizer"] = _floats_like_defaults(sections["optimizer"], schema.defaults().optimizer)
    sections["average"] = _floats_like_defaults(sections["average"], schema.defaults().average)
    sections["schedule"] = _floats_like_defaults(sections["schedule"], schema.defaults().schedule)
    seeds = {"seed": np.uint32(config.seed), "order_seed": np.uint32(schema.order_seed(config))}
    return {**sections, **seeds, "epochs": config.epochs}


def _temperature(value: float | str) -> float:
    return 1.0 if isinstance(value, str) else float(value)


def _floats_like_defaults(section: Mapping[str, Any], defaults: Config) -> dict[str, Any]:
    """Returns a section of the config with floats wherever the schema's default is a float."""
    return {name: float(value) if isinstance(defaults[name], float) else value for name, value in section.items()}


def _as_arrays(numbers: dict[str, Any]) -> dict[str, Any]:
    dtype = jax.dtypes.canonicalize_dtype(float)
    return jax.tree.map(lambda leaf: np.asarray(leaf, dtype if isinstance(leaf, float) else None), numbers)


def stand_in(plan: Plan, output: str = "") -> Teacher:
    """Returns a teacher like the one that a planned run will be: its network before the first step.

    Students can be planned with it before their teacher is trained, and not trained.

    Args:
      plan: Plan of the teacher's run.
      output: What the student's config says of its output.
    """
    data, names = plan.dataset, tuple(plan.dataset.class_names or ()) or None
    own, labelled = plan.config.data.to_dict(), split_hash(data.labelled_train)
    return Teacher(plan.spec.model, plan.variables, data.num_classes, output or "softmax", {}, own, labelled, names)


def hashes_of(plan: Plan) -> dict[str, Any]:
    """Returns the hashes of what a run is made of; see `Run.check_content`."""
    return {
        "data": plan.dataset.hashes,
        "teachers": {name: teacher.sha256 for name, teacher in plan.teachers.items()},
        "init_from": plan.origin,
        "code": own_code.source_hashes(own_code.names_in(plan.config.to_dict())),
    }


def batch_norm_scope(plan: Plan) -> str:
    """Returns over what a run takes its batch statistics: 'none', 'global' or 'per_device'."""
    scope = models.batch_norm_scope(plan.spec.model, (1, *plan.dataset.input_shape))
    return "per_device" if scope == "global" and not plan.spec.sync_batch_norm else scope


def manifest_of(plan: Plan) -> dict[str, Any]:
    """Returns the manifest of a planned run."""
    records = {name: dict(teacher.record) for name, teacher in plan.teachers.items()}
    for name, fields in plan.config.teachers.items():
        if fields.temperature == schema.FITTED:
            records[name]["temperature"] = round(float(plan.numbers["teachers"][name]["temperature"]), DIGITS)
    scope = batch_norm_scope(plan)
    if scope == "per_device" and plan.spec.sync_batch_norm:
        logging.warning("%s has statistics other than BatchNorm's, which are taken per device.", plan.config.model.name)
    parameters = models.count_parameters(plan.variables)
    count = parallel.device_count(plan.devices)
    return make_manifest(
        plan.config.to_dict(), plan.model_args, plan.dataset, records, scope, parameters, hashes_of(plan), count
    )

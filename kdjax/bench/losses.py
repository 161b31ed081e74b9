"""Measures every method's losses with their gradient, at the shapes of resnet32x4 -> resnet8x4."""

import functools
import importlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from kdjax import models
from kdjax.bench import vocabulary
from kdjax.bench.results import Table, publish
from kdjax.bench.step import compiled_step
from kdjax.bench.timing import in_turn, machine
from kdjax.data import Dataset
from kdjax.data.dataset import Stored
from kdjax.distillation.distillers import make_distiller
from kdjax.distillation.inputs import LossInputs, TeacherOutput
from kdjax.distillation.terms import Term
from kdjax.errors import lookup
from kdjax.training import forward
from kdjax.training.plan import Plan, plan_with, resolve, traced
from kdjax.training.spec import Model
from kdjax.training.teachers import Teacher
from kdjax.types import Array, ModelOutput

TEACHER, STUDENT = "resnet32x4", "resnet8x4"
TRANSFORMERS = "deit3_small,deit_tiny,imagenet"  # the networks of vitkd, here with patches of 4 pixels
SIZE, CLASSES, BATCH, EXAMPLES = 32, 100, 64, 50_000
HEADER = (
    "method",
    "phase",
    "milliseconds for loss and gradient",
    "temporary memory in MiB",
    "state and parameters in MiB",
    "share of a train step",
)


def show(flag: flags.FlagValues) -> None:
    """Prints a row for every method, as soon as it is measured.

    The config of the command is configs/student.py, which is called for each method in turn. A table of losses of a
    large vocabulary follows; `--only=vocabulary` prints it alone.
    """
    if flag.only == ["vocabulary"]:
        return publish(flag, f"{machine()}; one device.", vocabulary.table(flag.rounds))
    student = importlib.import_module("configs.student")  # on the path since --config was read
    methods = flag.only or [method for method in student.METHODS if method not in ("alone", "kd_dot")]  # that has KD's
    for method in methods:
        lookup(student.METHODS, method, "method")
    seconds = _step_seconds(_plan(student.get_config(f"kd,{TEACHER},{STUDENT}")), flag.rounds)
    note = f"{machine()}; one device, batch {BATCH}, {SIZE}x{SIZE}, {CLASSES} classes, {EXAMPLES} examples. "
    note += f"A train step of {TEACHER} -> {STUDENT} with KD takes {1000 * seconds:.0f} milliseconds."
    rows = []
    for method in methods:
        for row in _rows(method, config_of(student, method), seconds, flag.rounds):
            rows.append(row)
            print(" | ".join(row), flush=True)
    print()
    tables = [Table(HEADER, rows, keys=2), *([] if flag.only else [vocabulary.table(flag.rounds)])]
    publish(flag, note, *tables)


def config_of(student: ModuleType, method: str) -> ConfigDict:
    """Returns the config of a method for the networks that are measured.

    Args:
      student: The module configs.student.
      method: A row of its table.
    """
    if method != "vitkd":
        return student.get_config(f"{method},{TEACHER},{STUDENT}")
    config = student.get_config(f"{method},{TRANSFORMERS}")
    config.data.view, config.model.args = "none", {"patch": 4}
    return config


def _rows(method: str, config: ConfigDict, step_seconds: float, rounds: int) -> list[tuple]:
    """Returns a row for each phase in which the method has losses of its own; cross-entropy is not measured."""
    plan, found = _plan(config), []
    for spec in (plan.warmup, plan.spec):
        terms = [term for term in (spec.terms if spec is not None else ()) if term.key != "cross_entropy"]
        if spec is None or not terms:
            continue
        compiled, arguments = _compiled(plan, terms)
        run = functools.partial(compiled, *arguments)
        seconds = statistics.median(in_turn({method: run}, rounds)[method])
        memory = compiled.memory_analysis()
        temporary = f"{memory.temp_size_in_bytes / 2**20:.1f}" if memory is not None else "-"
        carried = sum(leaf.nbytes for leaf in jax.tree.leaves(plan.distiller))
        share = f"{seconds / step_seconds:.1%}"
        found.append((method, spec.phase, f"{1000 * seconds:.2f}", temporary, f"{carried / 2**20:.1f}", share))
    return found


def _compiled(plan: Plan, terms: list[Term]) -> tuple[Callable, tuple]:
    """Returns the compiled loss with its gradient for the student's outputs and the losses' own parameters."""
    generator = np.random.default_rng(0)

    def output(model: Model, variables: Mapping) -> tuple[ModelOutput, tuple[str, ...]]:
        names = []

        def run(variables: Mapping, images: Array) -> ModelOutput:
            found = models.call(model, variables, images, train=False)[0]
            names.extend(found.features)
            return found

        images = jax.ShapeDtypeStruct((BATCH, SIZE, SIZE, 3), np.float32)
        shapes = jax.eval_shape(run, variables, images)
        draw = lambda leaf: generator.normal(size=leaf.shape).astype(np.float32)  # noqa: E731
        return jax.tree.map(draw, shapes), tuple(names)

    teacher = plan.teachers["a"]
    norms = forward.preact_norms(teacher.model, teacher.variables)
    of_student, of_teacher = (plan.spec.model, plan.variables), (teacher.model, teacher.variables)
    (student, own_names), (taught, taught_names) = output(*of_student), output(*of_teacher)
    heads = [forward.head_of(model, variables["params"]) for model, variables in (of_student, of_teacher)]
    labels = generator.integers(0, CLASSES, BATCH).astype(np.int32)
    distiller, hyper = make_distiller(terms), traced(plan.config)["losses"]

    def objective(trainable, taught, state, labels):
        own = trainable["output"]
        inputs = LossInputs(
            output=_by_depth(own, own_names),
            targets=labels,
            labels=labels,
            index=labels,
            mask=labels >= 0,
            labelled=labels >= 0,
            epoch=jnp.int32(0),
            seed=jnp.uint32(0),
            teachers={"a": TeacherOutput(taught.logits, 1.0, _by_depth(taught, taught_names), norms, head=heads[1])},
            head=heads[0],
        )
        values, new_state = distiller.apply({"params": trainable["distiller"], "state": state}, inputs, hyper)
        return sum(jnp.mean(value) for value in values.values()), new_state

    trainable = {"output": student, "distiller": plan.distiller["params"]}
    arguments = jax.device_put((trainable, taught, plan.distiller["state"], labels))
    return jax.jit(jax.value_and_grad(objective, has_aux=True)).lower(*arguments).compile(), arguments


def _by_depth(output: ModelOutput, names: Sequence[str]) -> ModelOutput:
    """Returns the output with its features in the order of depth, which dicts lose as arguments of compiled code."""
    return output._replace(features={name: output.features[name] for name in names})


def _plan(config: ConfigDict) -> Plan:
    model = _teacher_of(config)
    variables = models.init_variables(model, (1, SIZE, SIZE, 3), 1)
    teacher = Teacher(model, variables, CLASSES, "softmax", {}, None)
    config = resolve(config)
    return plan_with(config, _blank(), {"a": teacher} if config.teachers else {}, jax.local_devices()[:1])


def _teacher_of(config: ConfigDict) -> Model:
    """Returns the teacher's network, with the auxiliary heads that the student has."""
    if config.model.name == "deit_tiny":
        return models.create_model("deit3_small", CLASSES, **config.model.args.to_dict())
    if config.model.name == "sskd":
        return models.create_model("sskd", CLASSES, body=TEACHER)
    return models.create_model(f"{TEACHER}_aux" if config.model.name.endswith("_aux") else TEACHER, CLASSES)


@functools.lru_cache
def _blank() -> Dataset:
    """Returns a data set of the size of CIFAR-100 whose images are all black."""
    images = np.zeros((EXAMPLES, SIZE, SIZE, 3), np.uint8)
    labels = (np.arange(EXAMPLES) % CLASSES).astype(np.int32)
    rows = np.arange(EXAMPLES, dtype=np.int32)
    return Dataset("blank", images, labels, None, CLASSES, {"train": rows}, Stored(1 / 255, (0.5,), (0.25,), ("none",)))


def _step_seconds(plan: Plan, rounds: int) -> float:
    return statistics.median(in_turn({"step": compiled_step(plan, BATCH).run}, rounds)["step"])

"""Times every method's losses and their gradient at the shapes of resnet32x4 -> resnet8x4, beside a train step."""

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from kdjax import models
from kdjax.bench.step import machine, one_step
from kdjax.data import Dataset
from kdjax.data.dataset import Stored
from kdjax.distillation import distillers
from kdjax.errors import lookup
from kdjax.reporting.tables import markdown
from kdjax.training import forward, steps
from kdjax.training.plan import Plan, plan_with, resolve, traced
from kdjax.training.teachers import Teacher
from kdjax.types import ModelOutput

TEACHER, STUDENT = "resnet32x4", "resnet8x4"
SIZE, CLASSES, BATCH, EXAMPLES = 32, 100, 64, 50_000
HEADER = ("method", "phase", "loss and gradient, ms", "temporary memory, MB", "carried, MB", "share of a step")


def show(flag: Any) -> None:
    """Prints a row for every method, as soon as it is measured.

    The command's config is one of configs/student.py; its method is replaced by each in turn.
    """
    import importlib

    student = importlib.import_module("configs.student")  # on the path since --config was read
    methods = flag.only or [method for method in student.METHODS if method not in ("alone", "hsakd")]
    for method in methods:
        lookup(student.METHODS, method, "method")
    seconds = _step_seconds(_plan(student.get_config(f"kd,{TEACHER},{STUDENT}")), flag.rounds)
    print(
        f"{machine()}; one device, batch {BATCH}, {SIZE}x{SIZE}, {CLASSES} classes, {EXAMPLES} examples; a train step"
    )
    print(f"of {TEACHER} -> {STUDENT} by KD: {1000 * seconds:.0f} ms\n")
    rows = []
    for method in methods:
        for row in _rows(method, student.get_config(f"{method},{TEACHER},{STUDENT}"), seconds, flag.rounds):
            rows.append(row)
            print(" | ".join(row), flush=True)
    print(f"\n{markdown(HEADER, rows)}")


def _rows(method: str, config: ConfigDict, step_seconds: float, rounds: int) -> list[tuple]:
    """One row for each phase in which the method's own terms count, cross-entropy left out."""
    plan, found = _plan(config), []
    for spec in (plan.warmup, plan.spec):
        terms = {key: term for key, term in traced(plan.config)["losses"].items() if key != "cross_entropy"}
        terms = {key: term for key, term in terms.items() if spec is not None and key in spec.terms}
        if not terms:
            continue
        compiled, arguments = _compiled(plan, spec, terms)
        jax.block_until_ready(compiled(*arguments))
        seconds = statistics.median(_time(lambda: jax.block_until_ready(compiled(*arguments))) for _ in range(rounds))
        memory = compiled.memory_analysis()
        temporary = f"{memory.temp_size_in_bytes / 2**20:.1f}" if memory is not None else "-"
        carried = sum(leaf.nbytes for leaf in jax.tree.leaves(plan.distiller))
        share = f"{seconds / step_seconds:.1%}"
        found.append((method, spec.phase, f"{1000 * seconds:.2f}", temporary, f"{carried / 2**20:.1f}", share))
    return found


def _compiled(plan: Plan, spec: steps.Spec, terms: dict) -> tuple[Callable, tuple]:
    """The compiled loss and gradient with respect to the student's outputs and the losses' own parts."""
    generator = np.random.default_rng(0)

    def output(name: str) -> ModelOutput:
        module = models.create_model(name, CLASSES)
        shapes = jax.eval_shape(
            lambda variables, images: models.call(module, variables, images, train=False)[0],
            models.variable_shapes(module, (1, SIZE, SIZE, 3)),
            jax.ShapeDtypeStruct((BATCH, SIZE, SIZE, 3), np.float32),
        )
        return jax.tree.map(lambda leaf: generator.normal(size=leaf.shape).astype(np.float32), shapes)

    teacher = plan.teachers["a"]
    norms = forward.norms(teacher.model, teacher.variables)
    student, taught = output(STUDENT), output(TEACHER)
    labels = generator.integers(0, CLASSES, BATCH).astype(np.int32)
    distiller = distillers.make_distiller(terms, warming_up=spec.phase == "warmup")

    def objective(trainable, taught, state, labels):
        own = trainable["output"]
        told = {"logits": taught.logits, "weight": 1.0, "output": _by_depth(taught), "norms": norms}
        inputs = {
            "logits": own.logits, "student_logits": own.logits, "labels": labels, "classes": labels, "index": labels,
            "mask": labels >= 0, "axis_name": None, "teachers": {"a": told}, "output": _by_depth(own),
            "epoch": jnp.int32(0), "seed": jnp.uint32(0), "sync": None, "unbiased": False,
        }  # fmt: skip
        values, new_state = distiller.apply({"params": trainable["distiller"], "state": state}, inputs, terms)
        return sum(jnp.mean(value) for value in values.values()), new_state

    trainable = {"output": student, "distiller": plan.distiller["params"]}
    arguments = jax.device_put((trainable, taught, plan.distiller["state"], labels))
    return jax.jit(jax.value_and_grad(objective, has_aux=True)).lower(*arguments).compile(), arguments


def _by_depth(output: ModelOutput) -> ModelOutput:
    """Features in the networks' order, which a compiled function's arguments lose."""
    names = ("stem", "stage1", "stage2", "stage3")
    features = {f"{name}{end}": output.features[f"{name}{end}"] for name in names for end in ("", "_preact")}
    return output._replace(features=features)


def _time(run: Callable) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _plan(config: ConfigDict) -> Plan:
    model = models.create_model(TEACHER, CLASSES)
    variables = models.init_variables(model, (1, SIZE, SIZE, 3), 1)
    teacher = Teacher(model, variables, CLASSES, "softmax", {}, None)
    config = resolve(config)
    return plan_with(config, _blank(), {"a": teacher} if config.teachers else {}, jax.local_devices()[:1])


@functools.lru_cache
def _blank() -> Dataset:
    """As many examples as CIFAR-100, of no content."""
    images = np.zeros((EXAMPLES, SIZE, SIZE, 3), np.uint8)
    labels = (np.arange(EXAMPLES) % CLASSES).astype(np.int32)
    rows = np.arange(EXAMPLES, dtype=np.int32)
    return Dataset("blank", images, labels, None, CLASSES, {"train": rows}, Stored(1 / 255, (0.5,), (0.25,), ("none",)))


def _step_seconds(plan: Plan, rounds: int) -> float:
    lowered, (carry, fixed, batches) = one_step(plan, BATCH)
    compiled, carried = lowered.compile(), [carry]

    def run() -> None:
        carried[0] = jax.block_until_ready(compiled(carried[0], fixed, batches))

    run()
    return statistics.median(_time(run) for _ in range(rounds))

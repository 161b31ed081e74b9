"""The losses of a phase as one pair of pure functions, as an optax transformation is one."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jax import lax

from kdjax import losses, models
from kdjax.data import Dataset
from kdjax.distillation.adapters import Adapter
from kdjax.distillation.inputs import FROM_VECTORS, Head, LossInputs, TeacherOutput
from kdjax.distillation.stages import (
    POOLED,
    branches,
    classified_map,
    last_map,
    map_of,
    margins_of,
    pair_stages,
    pooled_vector,
    stage_maps,
    student_branches,
)
from kdjax.distillation.terms import Term
from kdjax.errors import UserError
from kdjax.randomness import named_seed
from kdjax.types import Array, ModelOutput

Arguments = dict[str, Any]  # argument of a loss or an adapter -> value
Variables = Mapping[str, Mapping[str, Any]]  # 'params' or 'state' -> term -> teacher or OWN -> the adapter's leaves
OWN = "own"  # stands for a teacher in an adapter that reads the network itself


class Distiller(NamedTuple):
    """A pair of pure functions.

    Attributes:
      init: `(seed, make_inputs, dataset) -> {'params': ..., 'state': ...}`, NumPy arrays. The params are optimised with
        the student, the state is carried from step to step. `make_inputs` returns the inputs of two blank images; it is
        traced for their shapes and never run.
      apply: `(variables, inputs, hyper) -> (values, state)`. `hyper` maps each term to its fields in the config, whose
        numbers may be traced; `values` maps it to [batch] or [].
    """

    init: Callable[[int, Callable[[], LossInputs], Dataset | None], dict[str, dict]]
    apply: Callable[[Variables, LossInputs, Mapping[str, Mapping]], tuple[dict[str, Array], dict[str, dict]]]


def make_distiller(terms: Sequence[Term]) -> Distiller:
    """Makes one Distiller from the terms of a phase."""

    def init(seed: int, make_inputs: Callable[[], LossInputs], dataset: Dataset | None = None) -> dict[str, dict]:
        found: dict[str, dict] = {"params": {}, "state": {}}
        adapters = {term.key: term.adapter for term in terms if term.adapter is not None}
        if not adapters:
            return found
        shapes = jax.eval_shape(functools.partial(_adapter_variables, terms, make_inputs))
        for (key, teacher), collections in shapes.items():
            variables = _draw_adapter(adapters[key], collections, f"{key}/{teacher}", seed, dataset)
            found["params"].setdefault(key, {})[teacher] = variables.pop("params")
            found["state"].setdefault(key, {})[teacher] = variables
        return found

    def apply(variables: Variables, inputs: LossInputs, hyper: Mapping[str, Mapping]) -> tuple[dict, dict]:
        values, state = {}, dict(variables["state"])
        for term in terms:
            values[term.key], changed = _evaluate(term, hyper[term.key], variables, inputs)
            state |= {term.key: changed} if changed else {}
        return values, state

    return Distiller(init, apply)


def _adapter_variables(terms: Sequence[Term], make_inputs: Callable[[], LossInputs]) -> dict[tuple[str, str], Any]:
    """Returns (term, teacher) -> variables of its adapter as flax makes them; called to learn their shapes alone."""
    inputs, found = make_inputs(), {}
    for term in terms:
        if term.adapter is not None:
            teachers = _teachers_of(term, inputs).items()
            offers = {name: _offer(term, inputs, teacher) for name, teacher in teachers} or {OWN: _from_self(inputs)}
            for name, offered in offers.items():
                found[term.key, name] = term.adapter.init(jax.random.key(0), offered)
    return found


def _draw_adapter(adapter: Adapter, shapes: Mapping[str, Any], path: str, seed: int, dataset: Dataset | None) -> dict:
    """Draws an adapter's variables by (seed, path), as those of a network; its memory it draws itself."""
    drawn_by_path = {name: shapes.get(name, {}) for name in ("params", "batch_stats")}
    own_seed = named_seed(seed, path)
    drawn = models.draw_variables(drawn_by_path, adapter.INITIALIZERS, own_seed, type(adapter).__name__)
    return {**drawn, "memory": adapter.first_memory(own_seed, dataset)}


def _teachers_of(term: Term, inputs: LossInputs) -> dict[str, TeacherOutput]:
    """Returns the teachers that a term reads: the named one, or all; none for a loss that reads no teacher."""
    if not term.loss.reads_teacher:
        return {}
    if term.teacher:
        return {term.teacher: inputs.teachers[term.teacher]}
    if inputs.ensemble is not None and term.loss.reads_logits_alone:
        return {"ensemble": inputs.ensemble}
    return inputs.teachers


def _evaluate(term: Term, hyper: Mapping[str, Any], variables: Variables, inputs: LossInputs) -> tuple[Array, dict]:
    """Returns a term's value, averaged over its teachers by their weights, and the new states of its adapters."""
    teachers = _teachers_of(term, inputs)
    if not teachers:
        offered, states = _adapted(term, OWN, _from_self(inputs), variables, inputs)
        return _call(term, hyper, offered), states
    total = sum(teacher.weight for teacher in teachers.values())
    parts, states = [], {}
    for name, teacher in teachers.items():
        offered, changed = _adapted(term, name, _offer(term, inputs, teacher), variables, inputs)
        value = _call(term, hyper, _gathered(offered, inputs.axis_name))
        parts.append(teacher.weight / total * value)
        states |= changed
    return sum(parts[1:], parts[0]), states


def _adapted(
    term: Term, name: str, offered: Arguments, variables: Variables, inputs: LossInputs
) -> tuple[Arguments, dict]:
    """Returns the arguments with those that the term's adapter makes, and {name: the adapter's state after them}."""
    if term.adapter is None:
        return offered, {}
    own = {"params": variables["params"][term.key][name], **variables["state"][term.key][name]}
    adapted, state = _run_adapter(term.adapter, own, offered, inputs)
    return {**offered, **adapted}, {name: state}


def _call(term: Term, hyper: Mapping[str, Any], offered: Arguments) -> Array:
    """Calls the loss with what it asks for; a value that the loss refuses is the user's mistake."""
    loss = term.evaluated
    arguments = {name: offered[name] for name in loss.inputs if name in offered}
    parameters = {name: hyper[name] for name in loss.parameters if name in hyper}
    try:
        return loss.function(**arguments, **parameters)
    except ValueError as error:
        raise UserError(f"{term.field}: {error}") from error


def _run_adapter(
    adapter: Adapter, variables: Mapping[str, Any], offered: Arguments, inputs: LossInputs
) -> tuple[Arguments, dict]:
    """Returns the arguments that an adapter makes, and its state after them."""
    collections = [name for name in variables if name != "params"]
    with nn.intercept_methods(models.batch_statistics(inputs.sync_axis, inputs.unbiased, True)):
        adapted, updates = adapter.apply(variables, offered, mutable=collections)
    return adapted, {name: updates.get(name, variables[name]) for name in collections}


def _from_batch(inputs: LossInputs) -> Arguments:
    """Returns the arguments that need no teacher."""
    logits = inputs.output.logits
    return {
        "logits": logits,
        "student_logits": logits,
        "labels": inputs.targets,
        "index": inputs.index,
        "where": inputs.mask,
        "axis_name": inputs.axis_name,
    }


def _from_self(inputs: LossInputs) -> Arguments:
    """Returns all arguments that a loss or adapter without a teacher may take."""
    return {
        **_from_batch(inputs),
        "labelled": inputs.labelled,  # for adapters
        "parameters": inputs.parameters,
        "batch_statistics": inputs.batch_statistics,
        "branches": student_branches(inputs.output),
        "auxiliary": branches(inputs.output)[:-1],
        "views": inputs.output.features.get("views"),
    }


def _offer(term: Term, inputs: LossInputs, teacher: TeacherOutput) -> Arguments:
    """Returns all arguments that a term's loss and adapter may take, for one teacher."""
    offered = _from_batch(inputs)
    # for adapters
    offered |= {"classes": inputs.labels, "labelled": inputs.labelled, "epoch": inputs.epoch, "seed": inputs.seed}
    offered["teacher_logits"] = teacher.logits
    offered |= {"student_output": inputs.output, "teacher_output": teacher.output}  # for adapters
    offered["student_stages"] = stage_maps(inputs.output)  # for adapters
    for side, output in (("student", inputs.output), ("teacher", teacher.output)):
        offered |= {f"{side}_{name}": output.features.get(name) for name in ("rotated", "views")}
    offered["student_auxiliary"] = branches(inputs.output)
    offered["teacher_auxiliary"] = branches(teacher.output)
    if term.loss.reads_maps:
        offered |= _maps(term, inputs.output, teacher)
    for side, head in (("student", inputs.head), ("teacher", teacher.head)):
        if side in term.method.heads:
            offered[f"{side}_head"] = _head(term, side, head, offered[f"{side}_features"])
    if term.loss.reads_vectors:
        offered["student_embeddings"] = _vector(term, "student", inputs.output)
        offered["teacher_embeddings"] = _vector(term, "teacher", teacher.output)
    return offered


def _maps(term: Term, student: ModelOutput, teacher: TeacherOutput) -> Arguments:
    """Returns the maps that a term compares, and OFD's margins where it asks for them."""
    method, output = term.method, teacher.output
    pairs = pair_stages(term.stages, method.stages, student, output, term.field)
    if method.single and len(pairs) != 1:
        raise UserError(f"{term.field}.stages: '{term.loss.name}' compares one map, not {len(pairs)}.")
    preact_student, preact_teacher = method.preact == "both", method.preact in ("both", "teacher")
    if method.classified and POOLED not in pairs[0]:
        (own, taught) = pairs[0]
        return {"student_features": classified_map(student, own), "teacher_features": classified_map(output, taught)}
    of_student = tuple(map_of(student, name, preact_student, f"{term.field}: the student") for name, _ in pairs)
    of_teacher = tuple(map_of(output, name, preact_teacher, f"{term.field}: the teacher") for _, name in pairs)
    offered: Arguments = {"student_features": of_student, "teacher_features": of_teacher}
    if method.single:
        offered = {"student_features": of_student[0], "teacher_features": of_teacher[0]}
    if term.loss.takes("margins"):
        stages = [name for _, name in pairs]
        offered["margins"] = margins_of(teacher.norms, stages, term.field, losses.ofd_margins)
    return offered


def _head(term: Term, side: str, head: Head | None, features: Array) -> Head:
    """Returns a network's classifier for an adapter that applies it to the mean of the network's map."""
    if head is None:
        raise UserError(
            f"{term.field}: the {side} has no linear classifier 'fc' of the mean of its last map; where that is "
            "another layer, name it by an attribute HEAD of the network's class."
        )
    reads, has = head[0].shape[0], features.shape[-1]
    if reads != has:
        raise UserError(
            f"{term.field}: the {side}'s classifier reads {reads} numbers, and the map that is compared has {has} "
            f"channels; name the map before the classifier: {term.field}.stages = (('stage1', 'stage2'),)."
        )
    return head


def _vector(term: Term, side: str, output: ModelOutput) -> Array:
    """Returns the vector of one network that a term compares, or its last map."""
    deepest = last_map(output) if term.method.embeddings == "last" else None
    return pooled_vector(output, f"{term.field}: the {side}") if deepest is None else deepest


def _gathered(offered: Arguments, axis_name: str | None) -> Arguments:
    """Gathers vectors from all devices, since losses on vectors compare the examples of the global batch."""
    if axis_name is None:
        return offered
    whole = {
        name: lax.all_gather(value, axis_name, axis=0, tiled=True)
        for name, value in offered.items()
        if name in (*FROM_VECTORS, "student_projections") and value is not None
    }
    return {**offered, **whole}

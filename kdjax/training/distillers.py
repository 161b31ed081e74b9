"""What turns a config's mapping of losses into one pure pair (init, apply)."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.errors import UserError, lookup
from kdjax.training.schedules import resolve_arguments, resolve_weight

# Arguments that the step passes to a loss, by name; everything else in a signature is a hyper-parameter.
INPUTS = ("logits", "student_logits", "teacher_logits", "labels", "index", "mask", "axis_name")
FROM_TEACHER = ("teacher_logits",)
# A term's own fields beside its hyper-parameters.
FIELDS = ("loss", "weight", "teacher")


class Distiller(NamedTuple):
    """A pair of pure functions, as an optax transformation is.

    Attributes:
      init: `(seed) -> {'params': ..., 'state': ...}`; params are optimised with the student, state is carried.
      apply: `(variables, inputs, terms) -> (values, state)`, values: name -> [batch] or [].
    """

    init: Callable[[int], dict]
    apply: Callable[[Mapping, Mapping, Mapping], tuple[dict, Any]]


def resolve_losses(terms: Mapping, teachers: Mapping) -> dict[str, dict]:
    """Checks `config.losses` against the functions' signatures and fills in every default.

    Args:
      terms: name -> {'weight': ..., 'loss': ..., 'teacher': ..., hyper-parameters}.
      teachers: `config.teachers`.

    Returns:
      The same mapping with every field explicit, floats where the function wants floats.

    Raises:
      UserError: unknown loss, hyper-parameter or teacher, missing or out of range, a teacher that is needed and absent.
    """
    resolved = {}
    for key, term in terms.items():
        where = f"config.losses.{key}"
        name = term.get("loss", key)
        function = lookup(losses.LOSSES, name, "loss")
        given = {field: value for field, value in term.items() if field not in FIELDS}
        hyper = resolve_arguments(function, given, f"{where} ({name})", skip=INPUTS)
        for field, value in hyper.items():
            _check_range(where, field, value)
        _check_teacher(where, name, function, term.get("teacher", ""), teachers)
        weight = resolve_weight(term["weight"], f"{where}.weight")
        resolved[key] = {"loss": name, "weight": weight, "teacher": term.get("teacher", ""), **hyper}
    return resolved


def _check_range(where: str, field: str, value: Any) -> None:
    try:
        losses.check_range(field, value)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


def _check_teacher(where: str, name: str, function: Callable, teacher: str, teachers: Mapping) -> None:
    if reads_teacher(function) and not teachers:
        raise UserError(
            f"{where}: loss '{name}' reads a teacher and config.teachers is empty; add {{'a': {{'run': NAME}}}}."
        )
    if teacher:
        lookup(dict(teachers), teacher, f"teacher of {where}")


def reads_teacher(function: Callable) -> bool:
    """Whether a loss takes an argument that comes from a teacher."""
    return any(name in FROM_TEACHER for name in inspect.signature(function).parameters)


def make_distiller(terms: Mapping) -> Distiller:
    """Makes one Distiller of all terms; `terms` (resolved) gives the structure, its numbers are not read here."""
    functions = {key: lookup(losses.LOSSES, term["loss"], "loss") for key, term in terms.items()}

    def init(seed: int) -> dict:
        del seed  # the losses of this table carry nothing
        return {"params": {}, "state": {}}

    def apply(variables, inputs, terms):
        values = {key: _evaluate(functions[key], terms[key], inputs) for key in functions}
        return values, variables["state"]

    return Distiller(init, apply)


def _evaluate(function: Callable, term: Mapping, inputs: Mapping) -> jax.Array:
    """One term's value; one that reads teachers is the mean over them, by their weights."""
    names = inspect.signature(function).parameters
    hyper = {field: value for field, value in term.items() if field not in FIELDS}
    shared = {name: inputs[name] for name in names if name in inputs}
    if not reads_teacher(function):
        return function(**shared, **hyper)
    teachers = inputs["teachers"]
    chosen = {term["teacher"]: teachers[term["teacher"]]} if term["teacher"] else teachers
    total = sum(teacher["weight"] for teacher in chosen.values())
    parts = [
        teacher["weight"] / total * function(**shared, **_from_teacher(teacher, names), **hyper)
        for teacher in chosen.values()
    ]
    return sum(parts[1:], parts[0])


def _from_teacher(teacher: Mapping, names) -> dict:
    return {f"teacher_{field}": value for field, value in teacher.items() if f"teacher_{field}" in names}


def diagnostics(inputs: Mapping, terms: Mapping) -> dict[str, jax.Array]:
    """Looks into a distillation: entropies, KL to the transformed teacher, WTTM weight, each [batch].

    The power is `gamma` of the first term that has one, else 1 / `temperature` of the first that has that, else 1.
    """
    logits = inputs["logits"]
    found = {"student_entropy": losses.renyi_entropy(logits, 1.0)}
    gammas = [term["gamma"] for term in terms.values() if "gamma" in term]
    gammas += [1 / term["temperature"] for term in terms.values() if "temperature" in term]
    gamma = gammas[0] if gammas else 1.0
    for name, teacher in inputs["teachers"].items():
        found[f"{name}/teacher_entropy"] = losses.renyi_entropy(teacher["logits"], 1.0)
        found[f"{name}/kl_to_transformed"] = losses.ttm(logits, teacher["logits"], gamma=gamma)
        # U = sum_k p_k^gamma = exp((1 - gamma) H_gamma(p))
        found[f"{name}/wttm_weight"] = jnp.exp((1 - gamma) * losses.renyi_entropy(teacher["logits"], gamma))
    return found

"""What turns a config's mapping of losses into one pure pair (init, apply)."""

import dataclasses
import functools
import inspect
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from kdjax import losses, models
from kdjax.arguments import resolve_arguments
from kdjax.distillation.methods import map_of, margins_of, method_of, pair_stages
from kdjax.distillation.schedules import resolve_weight
from kdjax.errors import UserError, lookup, nearest
from kdjax.types import ModelOutput

# Arguments that a loss may take by name; everything else in a signature is a hyper-parameter.
FROM_BATCH = ("logits", "student_logits", "labels", "index", "mask", "axis_name")
FROM_TEACHER = ("teacher_logits",)
FROM_MAPS = ("student_features", "teacher_features", "margins")
FROM_VECTORS = ("student_embeddings", "teacher_embeddings")
FROM_BRANCHES = ("auxiliary", "student_auxiliary", "teacher_auxiliary")  # of rotated images
FROM_ADAPTER = ("variances", "student_projections", "student_scores", "teacher_scores", "normalizers", "examples")
INPUTS = FROM_BATCH + FROM_TEACHER + FROM_MAPS + FROM_VECTORS + FROM_BRANCHES + FROM_ADAPTER
# A term's own fields beside its hyper-parameters.
FIELDS = ("loss", "weight", "ramp_epochs", "teacher", "stages", "adapter")


class Distiller(NamedTuple):
    """A pair of pure functions, as an optax transformation is.

    Attributes:
      init: `(seed, make_inputs, context) -> {'params': ..., 'state': ...}`, NumPy arrays; `make_inputs` returns inputs
        as for apply and is only traced, `context` tells of the data. Params are optimised with the student, state is
        carried.
      apply: `(variables, inputs, terms) -> (values, state)`, values: name -> [batch] or [].
    """

    init: Callable[[int, Callable[[], Mapping], Any], dict]
    apply: Callable[[Mapping, Mapping, Mapping], tuple[dict, Any]]


def resolve_losses(terms: Mapping, teachers: Mapping) -> dict[str, dict]:
    """Checks `config.losses` against the functions' signatures and fills in every default.

    Args:
      terms: name -> {'weight': ..., 'loss': ..., 'teacher': ..., 'stages': ..., hyper-parameters}.
      teachers: `config.teachers`.

    Returns:
      The same mapping with every field explicit, floats where the function wants floats; hyper-parameters of the
      loss's trainable part stand under 'adapter'.

    Raises:
      UserError: unknown loss, hyper-parameter or teacher, missing or out of range, a teacher that is needed and absent.
    """
    return {key: _resolve(key, term, teachers) for key, term in terms.items()}


def _resolve(key: str, term: Mapping, teachers: Mapping) -> dict:
    where = f"config.losses.{key}"
    if "/" in key:
        raise UserError(f"{where}: a loss's name cannot hold '/'.")
    name = term.get("loss", key)
    function = lookup(losses.LOSSES, name, "loss")
    given = {field: value for field, value in term.items() if field not in FIELDS}
    own = _adapter_fields(name)
    adapter = {**own, **dict(term.get("adapter", {})), **{field: given.pop(field) for field in own if field in given}}
    _check_inputs(where, name, function, given)
    hyper = resolve_arguments(function, given, f"{where} ({name})", skip=INPUTS)
    for field, value in hyper.items():
        _check_range(where, field, value)
    _check_teacher(where, name, function, term.get("teacher", ""), teachers)
    weight = _ramped(resolve_weight(term["weight"], f"{where}.weight"), term.get("ramp_epochs", 0), where)
    resolved = {"loss": name, "weight": weight, "teacher": term.get("teacher", ""), **hyper}
    if term.get("stages") and not _reads(function, FROM_MAPS):
        raise UserError(f"{where}.stages: loss '{name}' compares no maps; leave them out.")
    if _reads(function, FROM_MAPS):
        resolved["stages"] = tuple(s if isinstance(s, str) else tuple(s) for s in term.get("stages", ()))
    return {**resolved, "adapter": adapter} if adapter else resolved


def _check_inputs(where: str, name: str, function: Callable, given: Mapping) -> None:
    """An argument before the keyword-only ones is a tensor by intent: what is offered is named, not a missing field."""
    for parameter in inspect.signature(function).parameters.values():
        positional = parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        if positional and parameter.default is parameter.empty and parameter.name not in (*INPUTS, *given):
            raise UserError(
                f"{where}: loss '{name}' takes '{parameter.name}', which is neither in {where} nor an input of losses."
                f"{nearest(parameter.name, INPUTS)}"
            )


def _ramped(weight: Any, epochs: Any, where: str) -> Any:
    """A number that a weight rises to over its first epochs, so that a flag can still change the number alone."""
    if not epochs:
        return weight
    if not isinstance(epochs, int) or isinstance(epochs, bool) or epochs < 0 or isinstance(weight, Mapping):
        raise UserError(f"{where}.ramp_epochs must be a whole number of epochs beside a weight that is a number.")
    return resolve_weight({"schedule": "warmup", "value": weight, "epochs": epochs}, f"{where}.weight")


def _adapter_fields(loss: str) -> dict[str, Any]:
    """The hyper-parameters of a loss's trainable part, with their defaults."""
    adapter = method_of(loss).adapter
    if adapter is None:
        return {}
    inherited = {"train", "warming_up", "parent", "name"}
    return {field.name: field.default for field in dataclasses.fields(adapter) if field.name not in inherited}


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


def _reads(function: Callable, names: tuple[str, ...]) -> bool:
    return any(name in names for name in inspect.signature(function).parameters)


def reads_teacher(function: Callable) -> bool:
    """Whether a loss takes an argument that comes from a teacher."""
    return _reads(function, (*(name for name in INPUTS if name.startswith("teacher_")), *FROM_ADAPTER))


def reads_teacher_logits(function: Callable) -> bool:
    """Whether a loss compares logits with a teacher's, so that their classes must agree."""
    return _reads(function, (*FROM_TEACHER, "teacher_auxiliary"))


def reads_branches(function: Callable) -> bool:
    """Whether a loss compares branches of rotated images, which are of all of a teacher's classes, as they are."""
    return _reads(function, ("teacher_auxiliary",))


def reads_logits_alone(function: Callable) -> bool:
    """Whether logits are all that a loss reads of a teacher, so that several teachers can be joined into one."""
    return reads_teacher_logits(function) and not _reads(
        function, (*FROM_MAPS, *FROM_VECTORS, *FROM_BRANCHES, *FROM_ADAPTER)
    )


def make_distiller(terms: Mapping, warming_up: bool = False) -> Distiller:
    """Makes one Distiller of all terms; `terms` (resolved) gives the structure, its numbers are not read here.

    Args:
      terms: those of the phase; the adapters of all terms are initialised from all of them.
      warming_up: whether this is the phase that some methods start with.
    """

    def init(seed: int, make_inputs: Callable[[], Mapping], context: Any = None) -> dict:
        found = {"params": {}, "state": {}}
        if all(method_of(term["loss"]).adapter is None for term in terms.values()):
            return found
        shapes = jax.eval_shape(functools.partial(_adapter_variables, terms, make_inputs))
        for (key, name), collections in shapes.items():
            adapter = _adapter(terms[key], warming_up)
            variables = _draw_adapter(adapter, collections, f"{key}/{name}", seed, context)
            found["params"].setdefault(key, {})[name] = variables.pop("params")
            found["state"].setdefault(key, {})[name] = variables
        return found

    def apply(variables, inputs, terms):
        values, state = {}, dict(variables["state"])
        for key, term in terms.items():
            values[key], changed = _evaluate(key, term, variables, inputs, warming_up)
            state |= {key: changed} if changed else {}
        return values, state

    return Distiller(init, apply)


def _adapter(term: Mapping, warming_up: bool) -> nn.Module | None:
    build = method_of(term["loss"]).adapter
    return None if build is None else build(warming_up=warming_up, **dict(term.get("adapter", ())))


def _adapter_variables(terms: Mapping, make_inputs: Callable[[], Mapping]) -> dict[tuple[str, str], Any]:
    """(term, teacher) -> variables of its adapter as flax makes them; called to learn their shapes alone."""
    inputs, found = make_inputs(), {}
    for key, term in terms.items():
        adapter = _adapter(term, False)
        for name, teacher in _teachers_of(term, inputs).items() if adapter is not None else ():
            found[key, name] = adapter.init(jax.random.key(0), _offer(key, term, inputs, teacher))
    return found


def _draw_adapter(adapter: nn.Module, shapes: Mapping, path: str, seed: int, context: Any) -> dict:
    """Draws an adapter's variables by (seed, path), as a network's; what it remembers it makes itself."""
    kept = {name: shapes.get(name, {}) for name in ("params", "batch_stats")}
    own_seed = (zlib.crc32(path.encode()) ^ seed) & 0xFFFFFFFF
    drawn = models.draw_variables(kept, adapter.INITIALIZERS, own_seed, type(adapter).__name__)
    return {**drawn, "memory": adapter.first_memory(own_seed, context)}


def _teachers_of(term: Mapping, inputs: Mapping) -> dict[str, Mapping]:
    """The teachers that a term reads: the named one, or all; none for a loss that reads no teacher."""
    function = lookup(losses.LOSSES, term["loss"], "loss")
    if not reads_teacher(function):
        return {}
    if term["teacher"]:
        return {term["teacher"]: inputs["teachers"][term["teacher"]]}
    if inputs.get("ensemble") is not None and reads_logits_alone(function):
        return {"ensemble": inputs["ensemble"]}
    return inputs["teachers"]


def _evaluate(key: str, term: Mapping, variables: Mapping, inputs: Mapping, warming_up: bool) -> tuple[jax.Array, dict]:
    """One term's value, the mean over its teachers by their weights, and the new states of its adapters."""
    name = method_of(term["loss"]).warmup if warming_up else ""
    function = lookup(losses.LOSSES, name or term["loss"], "loss")
    names = inspect.signature(function).parameters
    fields = {field: value for field, value in term.items() if field not in FIELDS and field in names}
    chosen = _teachers_of(term, inputs)
    if not chosen:
        offered = {**inputs, "auxiliary": _branches(inputs["output"])[:-1]}
        return _call(key, function, offered, fields), {}
    total = sum(teacher["weight"] for teacher in chosen.values())
    parts, states = [], {}
    for teacher_name, teacher in chosen.items():
        offered = _offer(key, term, inputs, teacher)
        adapter = _adapter(term, warming_up)
        if adapter is not None:
            own = {
                "params": variables["params"][key][teacher_name],
                **variables["state"][key][teacher_name],
            }
            changed, states[teacher_name] = _run_adapter(adapter, own, offered, inputs)
            offered = {**offered, **changed}
        offered = _gathered(offered, inputs["axis_name"], term)
        value = _call(key, function, offered, fields)
        parts.append(teacher["weight"] / total * value)
    return sum(parts[1:], parts[0]), states


def _call(key: str, function: Callable, offered: Mapping, fields: Mapping):
    """A loss of what it asks for; what it refuses, the user's config has asked."""
    asked = {name: offered[name] for name in inspect.signature(function).parameters if name in offered}
    try:
        return function(**asked, **fields)
    except ValueError as error:
        raise UserError(f"config.losses.{key}: {error}") from error


def _run_adapter(adapter: nn.Module, variables: Mapping, offered: dict, inputs: Mapping) -> tuple[dict, dict]:
    state = [name for name in variables if name != "params"]
    interceptor = models.batch_statistics(inputs.get("sync"), inputs.get("unbiased", False), True)
    with nn.intercept_methods(interceptor):
        changed, updates = adapter.apply(variables, offered, mutable=state)
    return changed, {name: updates.get(name, variables[name]) for name in state}


def _offer(key: str, term: Mapping, inputs: Mapping, teacher: Mapping) -> dict[str, Any]:
    """All arguments that a term may take, for one teacher."""
    function = lookup(losses.LOSSES, term["loss"], "loss")
    offered = {name: inputs[name] for name in (*FROM_BATCH, "classes", "epoch", "seed") if name in inputs}
    offered["teacher_logits"] = teacher["logits"]
    offered["student_auxiliary"] = _branches(inputs["output"])
    offered["teacher_auxiliary"] = _branches(teacher["output"])
    if _reads(function, FROM_MAPS):
        offered |= _maps(f"config.losses.{key}", term, inputs["output"], teacher)
    if _reads(function, FROM_VECTORS) or "student_scores" in inspect.signature(function).parameters:
        sides = {"student_embeddings": inputs["output"], "teacher_embeddings": teacher["output"]}
        offered |= {name: _vector(f"config.losses.{key}", term, name, output) for name, output in sides.items()}
    return offered


def _branches(output: ModelOutput) -> tuple:
    """What a network tells of rotated images: its auxiliary classifiers by depth, and its own logits last."""
    names = [name for name in output.features if name.startswith("auxiliary")]
    return (*(output.features[name] for name in names), *([output.features["rotated"]] if names else []))


def _maps(where: str, term: Mapping, student: ModelOutput, teacher: Mapping) -> dict[str, Any]:
    method, output = method_of(term["loss"]), teacher["output"]
    pairs = pair_stages(term["stages"], method, student, output, where)
    ours = tuple(map_of(student, name, method.preact == "both") for name, _ in pairs)
    theirs = tuple(map_of(output, name, method.preact in ("both", "teacher")) for _, name in pairs)
    if method.single and len(pairs) != 1:
        raise UserError(f"{where}.stages: '{term['loss']}' compares one map, not {len(pairs)}.")
    offered = {"student_features": ours[0], "teacher_features": theirs[0]} if method.single else {
        "student_features": ours, "teacher_features": theirs}  # fmt: skip
    if "margins" in inspect.signature(lookup(losses.LOSSES, term["loss"], "loss")).parameters:
        offered["margins"] = margins_of(teacher["norms"], [name for _, name in pairs], where, losses.ofd_margins)
    return offered


def _vector(where: str, term: Mapping, name: str, output: ModelOutput):
    if method_of(term["loss"]).embeddings == "last":
        maps = [x for stage, x in output.features.items() if not stage.endswith("_preact") and x.ndim > 3]
        if maps:
            return maps[-1]
    if output.pooled is None:
        side = name.partition("_")[0]
        raise UserError(f"{where}: the {side} has no pooled vector; name one by config.model.pooled.")
    return output.pooled


def _gathered(offered: dict, axis_name: str | None, term: Mapping) -> dict:
    """Embeddings of the global batch, the same on every device: losses on them compare examples with one another."""
    if axis_name is None:
        return offered
    whole = {
        name: lax.all_gather(value, axis_name, axis=0, tiled=True)
        for name, value in offered.items()
        if name in (*FROM_VECTORS, "student_projections") and value is not None
    }
    return {**offered, **whole}


def trained_parts(term: Mapping, parts: Mapping, phase: str) -> set[str]:
    """Which parts of a term's adapter a phase trains: those of the warm-up in it, and all others afterwards."""
    kept = set(method_of(term["loss"]).kept)
    if not kept:
        return set(parts)
    return kept if phase == "warmup" else set(parts) - kept


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

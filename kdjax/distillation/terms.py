"""Terms of the loss: `config.losses` checked and completed, and each entry resolved once into a record."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from kdjax import losses
from kdjax.arguments import Signature, hashable, resolve_arguments, signature_of
from kdjax.distillation.adapters import Adapter
from kdjax.distillation.inputs import (
    FROM_ADAPTER,
    FROM_BRANCHES,
    FROM_MAPS,
    FROM_STUDENT_ADAPTER,
    FROM_TEACHER,
    FROM_VECTORS,
    FROM_VIEWS,
    INPUTS,
)
from kdjax.distillation.methods import Method, method_of
from kdjax.distillation.weight_schedules import resolve_weight, schedule_of
from kdjax.errors import UserError, lookup, nearest

OTHER_OUTPUTS = (*FROM_BRANCHES, *FROM_VIEWS)  # what networks make of rotated images

# Fields of an entry of config.losses beside the hyper-parameters of its loss.
FIELDS = ("loss", "weight", "ramp_epochs", "fall_epochs", "teacher", "stages", "adapter")


class LossFunction(NamedTuple):
    """A loss and what its signature asks for.

    Attributes:
      name: A row of LOSSES or 'package.module:attribute'.
      function: The loss itself.
      inputs: Names of the inputs that it takes, in order.
      parameters: Names of its hyper-parameters.
    """

    name: str
    function: Callable[..., Any]
    inputs: tuple[str, ...]
    parameters: tuple[str, ...]

    def takes(self, *names: str) -> bool:
        """Whether it takes at least one of these inputs."""
        return any(name in names for name in self.inputs)

    @property
    def reads_labels(self) -> bool:
        """Whether it needs labels, so that examples without one must not count."""
        return self.takes("labels")

    @property
    def reads_teacher(self) -> bool:
        """Whether it takes anything that comes from a teacher."""
        return self.takes(*(name for name in INPUTS if name.startswith("teacher_")), *FROM_ADAPTER)

    @property
    def reads_teacher_logits(self) -> bool:
        """Whether it compares logits with a teacher's, so that their classes must agree."""
        return self.takes(
            *FROM_TEACHER, "teacher_auxiliary", "teacher_rotated", "teacher_regions", "teacher_class_maps"
        )

    @property
    def reads_branches(self) -> bool:
        """Whether it compares branches of rotated images, which are as they are: of all of a teacher's classes."""
        return self.takes("teacher_auxiliary", "teacher_rotated")

    @property
    def reads_logits_alone(self) -> bool:
        """Whether logits are all that it reads of a teacher, so that several teachers can be made into one."""
        other = self.takes(*FROM_MAPS, *FROM_VECTORS, *OTHER_OUTPUTS, *FROM_ADAPTER)
        return self.reads_teacher_logits and not other

    @property
    def needs_logits_alone(self) -> bool:
        """Whether its adapter needs no more of a teacher than logits either, so that they may be computed once."""
        made = self.takes(*(name for name in FROM_ADAPTER if name not in FROM_STUDENT_ADAPTER))
        return self.reads_teacher_logits and not made and not self.takes(*FROM_MAPS, *FROM_VECTORS, *OTHER_OUTPUTS)

    @property
    def reads_maps(self) -> bool:
        """Whether it compares maps, itself or through its adapter."""
        return self.takes(*FROM_MAPS, "student_regions", "student_class_maps")

    @property
    def reads_vectors(self) -> bool:
        """Whether it compares vectors, itself or through its adapter."""
        return self.takes(*FROM_VECTORS, "student_scores", "student_vectors", "class_costs")


class Term(NamedTuple):
    """An entry of `config.losses`, resolved for one phase. Hashable; the numbers stay in the config.

    Attributes:
      key: Its name in config.losses.
      loss: The loss that decides which teachers and arrays the term reads.
      evaluated: The loss that is evaluated: another one in the warm-up of some methods.
      method: The row of the loss in METHODS.
      teacher: The teacher that it reads, '' for all.
      stages: The stages whose maps it compares, () for the method's own.
      adapter: Its trainable part, None for none.
      schedule: The schedule of its weight, None for a weight that is a number.
    """

    key: str
    loss: LossFunction
    evaluated: LossFunction
    method: Method
    teacher: str
    stages: tuple[str | tuple[str, str], ...]
    adapter: Adapter | None
    schedule: Callable[..., Any] | None

    @property
    def field(self) -> str:
        """Its place in the config, for messages."""
        return f"config.losses.{self.key}"


def find_loss(name: str) -> LossFunction:
    """Looks a loss up and reads its signature.

    Args:
      name: A row of LOSSES or 'package.module:attribute'.

    Raises:
      UserError: There is no such loss, or Python does not know what it takes.
    """
    function = hashable(lookup(losses.LOSSES, name, "loss"))
    try:
        names = signature_of(function).parameters
    except (TypeError, ValueError) as error:
        raise UserError(f"loss '{name}' is no function whose arguments Python knows: {error}.") from error
    inputs = tuple(name for name in names if name in INPUTS)
    return LossFunction(name, function, inputs, tuple(name for name in names if name not in inputs))


def make_terms(config_losses: Mapping[str, Mapping], *, warming_up: bool = False) -> tuple[Term, ...]:
    """Resolves the entries of a completed `config.losses` for one phase.

    Args:
      config_losses: What `resolve_losses` returned, or those entries that count in the phase; numbers may be traced.
      warming_up: Whether the phase is the warm-up.
    """
    return tuple(_make_term(key, entry, warming_up) for key, entry in config_losses.items())


def _make_term(key: str, entry: Mapping[str, Any], warming_up: bool) -> Term:
    loss, method = find_loss(entry["loss"]), method_of(entry["loss"])
    evaluated = find_loss(method.warmup_loss) if warming_up and method.warmup_loss else loss
    adapter = method.adapter and method.adapter(warming_up=warming_up, **dict(entry.get("adapter", ())))
    stages, schedule = tuple(entry.get("stages", ())), schedule_of(entry["weight"])
    return Term(key, loss, evaluated, method, entry["teacher"], stages, adapter, schedule)


def resolve_losses(terms: Mapping[str, Mapping], teachers: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Checks `config.losses` against the signatures of the losses and fills in every default.

    Args:
      terms: Name -> {'weight': ..., 'loss': ..., 'teacher': ..., 'stages': ..., hyper-parameters}.
      teachers: `config.teachers`.

    Returns:
      The same mapping with every field explicit and floats where the function wants floats; hyper-parameters of the
      loss's trainable part stand under 'adapter'.

    Raises:
      UserError: A loss, hyper-parameter or teacher is unknown, missing or out of range.
    """
    return {key: _resolve(key, term, teachers) for key, term in terms.items()}


def with_new_parameters(terms: Mapping[str, Mapping]) -> dict[str, dict[str, Any]]:
    """Completes resolved `config.losses` that an older kdjax stored by hyper-parameters that its losses took on since.

    Such a hyper-parameter has a default that keeps the loss as it was; a loss of the user's own is left alone.

    Args:
      terms: Resolved entries, as a manifest has them.
    """
    return {key: {**_defaults(term.get("loss", key)), **term} for key, term in terms.items()}


def _defaults(name: str) -> dict[str, Any]:
    if name not in losses.LOSSES:
        return {}
    parameters = signature_of(losses.LOSSES[name], skip=INPUTS).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _resolve(key: str, term: Mapping[str, Any], teachers: Mapping[str, Any]) -> dict[str, Any]:
    field = f"config.losses.{key}"
    if "/" in key:
        raise UserError(f"{field}: the name of a loss cannot hold '/'.")
    loss = find_loss(term.get("loss", key))
    takes = signature_of(loss.function, skip=INPUTS)
    given = {name: value for name, value in term.items() if name not in FIELDS}
    own = _adapter_defaults(loss.name)
    adapter = {**own, **dict(term.get("adapter", {})), **{name: given.pop(name) for name in own if name in given}}
    _check_inputs(field, loss.name, takes, given)
    hyper = resolve_arguments(takes, given, field=field, owner=f"loss '{loss.name}'", also=FIELDS)
    for name, value in {**hyper, **adapter}.items():
        _check_range(field, loss.name, name, value)
    _check_combination(field, loss.name, hyper)
    _check_teacher(field, loss, term.get("teacher", ""), teachers)
    weight = _ramped(resolve_weight(term["weight"], f"{field}.weight"), term.get("ramp_epochs", 0), field)
    weight = _falling(weight, tuple(term.get("fall_epochs", ())), field)
    resolved = {"loss": loss.name, "weight": weight, "teacher": term.get("teacher", ""), **hyper}
    if term.get("stages") and not loss.reads_maps:
        raise UserError(f"{field}.stages: loss '{loss.name}' compares no maps; leave them out.")
    if loss.reads_maps:
        resolved["stages"] = tuple(s if isinstance(s, str) else tuple(s) for s in term.get("stages", ()))
    return {**resolved, "adapter": adapter} if adapter else resolved


def _check_inputs(field: str, name: str, takes: Signature, given: Mapping[str, Any]) -> None:
    """Positional parameters of a loss are tensors. Refuses one that kdjax cannot supply and lists those it can."""
    for parameter in takes.required:
        if parameter in takes.positional and parameter not in given:
            raise UserError(
                f"{field}: loss '{name}' takes '{parameter}', which is neither in {field} nor an input of losses."
                f"{nearest(parameter, INPUTS)}"
            )


def _ramped(weight: Any, epochs: Any, field: str) -> Any:
    """Replaces a number by a schedule that rises to it, so that a flag can still change the number alone."""
    if not epochs:
        return weight
    if not isinstance(epochs, int) or isinstance(epochs, bool) or epochs < 0 or isinstance(weight, Mapping):
        raise UserError(f"{field}.ramp_epochs must be a whole number of epochs beside a weight that is a number.")
    return resolve_weight({"schedule": "warmup", "value": weight, "epochs": epochs}, f"{field}.weight")


def _falling(weight: Any, epochs: tuple, field: str) -> Any:
    """Replaces a number by a schedule that falls to 0 along half a cosine between two epochs, counted from 0."""
    if not epochs:
        return weight
    whole = all(isinstance(epoch, int) and not isinstance(epoch, bool) for epoch in epochs)
    if len(epochs) != 2 or not whole or epochs[0] >= epochs[1] or isinstance(weight, Mapping):
        raise UserError(
            f"{field}.fall_epochs must be two epochs, the first and the last of the fall, such as (149, 239), beside a "
            "weight that is a number without ramp_epochs."
        )
    fields = {"schedule": "cosine", "start": weight, "end": 0.0, "first": epochs[0], "last": epochs[1]}
    return resolve_weight(fields, f"{field}.weight")


def _adapter_defaults(loss: str) -> dict[str, Any]:
    """Returns the hyper-parameters of a loss's trainable part with their defaults."""
    adapter = method_of(loss).adapter
    if adapter is None:
        return {}
    inherited = {"train", "warming_up", "parent", "name"}
    return {field.name: field.default for field in dataclasses.fields(adapter) if field.name not in inherited}


def _check_range(field: str, loss: str, name: str, value: Any) -> None:
    try:
        losses.check_range(name, value, loss)
    except ValueError as error:
        raise UserError(f"{field}: {error}") from error


def _check_combination(field: str, loss: str, values: Mapping[str, Any]) -> None:
    try:
        losses.check_combination(loss, values)
    except ValueError as error:
        raise UserError(f"{field}: {error}") from error


def _check_teacher(field: str, loss: LossFunction, teacher: str, teachers: Mapping[str, Any]) -> None:
    if loss.reads_teacher and not teachers:
        raise UserError(
            f"{field}: loss '{loss.name}' reads a teacher and config.teachers is empty; add {{'a': {{'run': NAME}}}}."
        )
    if teacher:
        lookup(dict(teachers), teacher, f"teacher of {field}")

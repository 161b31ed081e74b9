"""The step of a population: several members in one compiled program, laid out in one of three ways.

Like `kdjax.training.steps`, these are pure per-device functions. What members share is computed once: the views of the
batch, and one forward pass of each shared teacher.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax import lax

from kdjax.training import forward, metrics
from kdjax.training.forward import Prepared
from kdjax.training.metrics import Sums
from kdjax.training.spec import Fixed, Spec, SpecTeacher, StepContext
from kdjax.training.state import TrainState
from kdjax.training.steps import make_context, train_step, update_student
from kdjax.types import Batch

# How the members of a population are laid out in one program.
VMAP = "vmap"  # one program for stacked members; right for matrix products
UNROLLED = "unrolled"  # one after another in one program; members may differ in losses and architecture
MAPPED = "mapped"  # a loop over stacked members


class PopulationSpec(NamedTuple):
    """What shapes the compiled step of a population.

    Attributes:
      layout: VMAP, UNROLLED or MAPPED.
      members: The spec of each member where they are unrolled, else the one spec of all.
      shares_batches: Whether all members see the same batches, views and teachers.
      shares_logits: Whether stacked members read the same cached logits of teachers; if not, those are stacked too.
      networks: The distinct teachers of unrolled members, named NUMBER:NAME; () in other layouts.
      readers: For each unrolled member, the names in `networks` of its own teachers, in the order of its spec.
    """

    layout: str
    members: tuple[Spec, ...]
    shares_batches: bool
    shares_logits: bool = True
    networks: tuple[SpecTeacher, ...] = ()
    readers: tuple[tuple[str, ...], ...] = ()


Carry = tuple[Any, Any]  # states and sums: tuples of members where they are unrolled, else stacked


def population_step(states: Any, fixed: Fixed, batch: Batch, *, spec: PopulationSpec, axis_name: str) -> Carry:
    """Makes one update of every member.

    Args:
      states: A tuple of states where members are unrolled, else one state with leaves [members, ...].
      fixed: What the step only reads. Its numbers are laid out as the states are; so are cached logits where stacked
        members do not share them.
      batch: One device's share of the batch; leaves [members, batch] where members have batches of their own.
      spec: Static.
      axis_name: The mapped axis of the devices.

    Returns:
      The states after the update and the step's sums, laid out as the states are.
    """
    return STEPS[spec.layout](states, fixed, batch, spec, axis_name)


def _unrolled(
    states: tuple[TrainState, ...], fixed: Fixed, batch: Batch, spec: PopulationSpec, axis_name: str
) -> Carry:
    shared = _context(fixed.numbers[0], batch, spec.members[0]._replace(teachers=spec.networks), axis_name)
    prepared = forward.prepare(fixed, shared)
    found = []
    for state, numbers, member, readers in zip(states, fixed.numbers, spec.members, spec.readers, strict=True):
        networks = {
            teacher.name: prepared.networks[name] for teacher, name in zip(member.teachers, readers, strict=True)
        }
        context = _context(numbers, batch, member, axis_name)
        found.append(update_student(state, Prepared(prepared.views, networks), context))
    return tuple(state for state, _ in found), tuple(sums for _, sums in found)


def _context(numbers: Mapping[str, Any], batch: Batch, spec: Spec, axis_name: str) -> StepContext:
    return make_context(numbers, batch, spec, axis_name)


def _vmap(states: TrainState, fixed: Fixed, batch: Batch, spec: PopulationSpec, axis_name: str) -> Carry:
    (member,) = spec.members
    if spec.shares_batches:
        prepared = _prepare_shared(fixed, batch, member, axis_name)

        def update(state: TrainState, numbers: Mapping[str, Any]) -> Carry:
            return update_student(state, prepared, make_context(numbers, batch, member, axis_name))

        return jax.vmap(update)(states, fixed.numbers)

    def step(state: TrainState, fixed: Fixed, batch: Batch) -> Carry:
        return train_step(state, fixed, batch, spec=member, axis_name=axis_name)

    own = None if spec.shares_logits else 0
    axes = Fixed(teachers=None, arrays=None, numbers=0, logits=own, held_out=own)  # type: ignore[arg-type]
    return jax.vmap(step, in_axes=(0, axes, _batch_axes(batch)))(states, fixed, batch)


def _prepare_shared(fixed: Fixed, batch: Batch, member: Spec, axis_name: str) -> Prepared:
    """Prepares a step once for all stacked members, which agree in everything that this reads."""
    first = jax.tree.map(lambda leaf: leaf[0], fixed.numbers)
    return forward.prepare(fixed, make_context(first, batch, member, axis_name))


def _batch_axes(batch: Batch) -> Batch:
    """Returns which leaves of a batch have an axis of members: all but the epoch."""
    return Batch(*(None if leaf is None or name == "epoch" else 0 for name, leaf in batch._asdict().items()))


def _mapped(states: TrainState, fixed: Fixed, batch: Batch, spec: PopulationSpec, axis_name: str) -> Carry:
    (member,) = spec.members
    if spec.shares_batches:
        prepared = _prepare_shared(fixed, batch, member, axis_name)

        def update(one: tuple[TrainState, Mapping[str, Any]]) -> Carry:
            state, numbers = one
            return update_student(state, prepared, make_context(numbers, batch, member, axis_name))

        return lax.map(update, (states, fixed.numbers))

    def step(one: tuple[TrainState, Any, Any, Batch]) -> Carry:
        state, numbers, of_teachers, own = one
        logits, held_out = (fixed.logits, fixed.held_out) if spec.shares_logits else of_teachers
        own_fixed = fixed._replace(numbers=numbers, logits=logits, held_out=held_out)
        return train_step(state, own_fixed, own._replace(epoch=batch.epoch), spec=member, axis_name=axis_name)

    own = batch._replace(epoch=None)  # the one leaf that all members share
    of_teachers = None if spec.shares_logits else (fixed.logits, fixed.held_out)
    return lax.map(step, (states, fixed.numbers, of_teachers, own))


STEPS = {VMAP: _vmap, UNROLLED: _unrolled, MAPPED: _mapped}


Losses = Any  # of each step: laid out as the sums are, name of a loss -> (sum, count) with leaves [steps, ...]


def population_steps(carry: Carry, fixed: Fixed, batches: Batch, *, spec: PopulationSpec, axis_name: str) -> Carry:
    """Makes the `[steps, ...]` updates of `batches` in one dispatch and adds their sums to the carried ones."""
    return _steps(carry, fixed, batches, spec, axis_name, lambda sums: None)[0]


def logged_steps(
    carry: Carry, fixed: Fixed, batches: Batch, *, spec: PopulationSpec, axis_name: str
) -> tuple[Carry, Losses]:
    """Does what `population_steps` does, and also returns the losses of every step."""
    return _steps(carry, fixed, batches, spec, axis_name, _losses)


def _steps(
    carry: Carry,
    fixed: Fixed,
    batches: Batch,
    spec: PopulationSpec,
    axis_name: str,
    note: Callable[[Any], Losses | None],
) -> tuple[Carry, Losses | None]:
    def body(carry: Carry, batch: Batch) -> tuple[Carry, Losses | None]:
        states, sums = carry
        states, step_sums = population_step(states, fixed, batch, spec=spec, axis_name=axis_name)
        return (states, _merge(sums, step_sums)), note(step_sums)

    if batches.index.shape[0] == 1:  # no loop: on CPU a plain convolution's gradient takes 21 times as long in a loop
        carry, noted = body(carry, jax.tree.map(lambda leaf: leaf[0], batches))
        return carry, jax.tree.map(lambda leaf: leaf[None], noted)
    return lax.scan(body, carry, batches)


def _losses(sums: Any) -> Losses:
    """Returns the losses among the sums of a step of all members."""
    if isinstance(sums, Sums):
        return {name: pair for name, pair in sums.metrics.items() if name.split("/")[0] in ("loss", "losses")}
    return tuple(map(_losses, sums))


def _merge(a: Any, b: Any) -> Any:
    if isinstance(a, Sums):
        return metrics.merge(a, b)
    return tuple(metrics.merge(x, y) for x, y in zip(a, b, strict=True))

"""Which runs can share a step, how they are laid out in it, and what they carry: a run is a population of one.

Members of a population see the same steps of the same epochs. Their numbers, seeds, splits and teachers may differ;
where they are unrolled, so may their losses and architectures. Each ends as an ordinary run, equal to the run alone.
"""

import functools
import hashlib
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from kdjax import models
from kdjax.config import order_seed
from kdjax.data import Dataset, make_order
from kdjax.data.keeping import PART_OF_MEMORY
from kdjax.training import evaluation, parallel
from kdjax.training.batch_loader import BatchLoader
from kdjax.training.identity import ByIdentity
from kdjax.training.metrics import Sums
from kdjax.training.plan import Plan
from kdjax.training.spec import Fixed, Model
from kdjax.training.state import TrainState
from kdjax.training.stored_teachers import OutputReader
from kdjax.training.teacher_logits import cached_logits
from kdjax.training.together import UNROLLED, VMAP, Carry, PopulationSpec, logged_steps, population_steps
from kdjax.types import Batch, Device

IN_TURN = "in turn"  # not laid out: each run is a population of one

# (backend, kind of network) -> layout; any other backend is treated as a GPU. On CPU, kernels that are batched over
# members become grouped convolutions, which are slow, and stacked parameters of wide networks leave the cache: eight
# MLPs 64-512-512-10 took 1.06 times as long stacked as in turn. `bench population` measures the table.
LAYOUTS = {
    ("cpu", "convolutional"): UNROLLED,
    ("cpu", "wide"): IN_TURN,
    ("cpu", "narrow"): VMAP,
    ("gpu", "convolutional"): VMAP,
    ("gpu", "wide"): VMAP,
    ("gpu", "narrow"): VMAP,
}
NARROW = 2**18  # bytes of parameters up to which a network without convolutions is narrow
MOST_UNROLLED = 8  # members written out in one program, since its compilation grows with them
COPIES = 4  # of a member's state: before and after a step, its gradients and its best state


def layout_of(plan: Plan) -> str:
    """Returns how members like this one are laid out."""
    backend = "cpu" if jax.default_backend() == "cpu" else "gpu"
    return LAYOUTS[backend, _kind(plan.variables)]


def _kind(variables: Mapping[str, Any]) -> str:
    if has_convolutions(variables):
        return "convolutional"
    size = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(variables["params"]))
    return "narrow" if size <= NARROW else "wide"


def has_convolutions(variables: Mapping[str, Any]) -> bool:
    """Whether a network has kernels of three axes and more."""
    return any(np.ndim(leaf) > 2 for leaf in jax.tree.leaves(variables["params"]))


def group_plans(plans: Sequence[Plan], progress: Sequence[Hashable]) -> list[list[int]]:
    """Returns the indices of the plans that are trained together, in the order of their first members.

    Args:
      plans: Plans of one process, on the same devices.
      progress: How far each of them is; members of a population are equally far.
    """
    groups: dict[Hashable, list[int]] = {}
    for i, plan in enumerate(plans):
        groups.setdefault((sharing_of(plan), progress[i]), []).append(i)
    return [part for group in groups.values() for part in _split(group, plans)]


def _split(group: list[int], plans: Sequence[Plan]) -> list[list[int]]:
    """Splits a population that is too large for the memory or, unrolled, for its compilation."""
    if len(group) == 1:
        return [group]
    first = plans[group[0]]
    room = PART_OF_MEMORY * parallel.memory(first.devices)
    most = max(1, int(room // max(_member_bytes(plans[i]) for i in group)))
    most = min(most, {IN_TURN: 1, UNROLLED: MOST_UNROLLED}.get(layout_of(first), most))
    return [group[start : start + most] for start in range(0, len(group), most)]


def _member_bytes(plan: Plan) -> int:
    """Returns about how many bytes a member takes on each device."""
    leaves = jax.tree.leaves((plan.variables, plan.distiller))
    state = COPIES * sum(np.asarray(leaf).nbytes for leaf in leaves) * 2  # momentum is as large again
    logits = sum(4 * len(plan.dataset.labels) * teacher.num_classes for teacher in plan.spec.teachers if teacher.cached)
    if layout_of(plan) in (VMAP, UNROLLED) and has_convolutions(plan.variables):
        examples = plan.config.batch_size // len(plan.devices)
        state += 2 * 4 * examples * _activations(plan.spec.model, plan.dataset.input_shape)  # values and gradients
    return state + logits


@functools.lru_cache(maxsize=64)
def _activations(model: Model, input_shape: tuple[int, ...]) -> int:
    """Returns about how many numbers the layers of a network put out for one image."""
    module = model.module if isinstance(model, models.FeatureExtractor) else model
    _, outputs = models.feature_shapes(module, (1, *input_shape))
    return sum(math.prod(shape) for shape in outputs.values())


class Sharing(NamedTuple):
    """What two plans must have in common to be trained in one step.

    Attributes:
      layout: How members like this one are laid out.
      loop: What the loop reads of the config.
      data: The images and the sizes of the splits.
      labels: Labels and soft targets.
      batches: Which examples are in which batch, None where members may differ in that.
      step: What shapes the compiled step, None where members are unrolled.
      teachers: The teachers, None where members may differ in them.
      alone: The plan itself where it cannot share anything.
    """

    layout: str
    loop: Hashable
    data: Hashable
    labels: Hashable
    batches: Hashable
    step: Hashable
    teachers: Hashable
    alone: Hashable


# What runs differ in if they differ in a field of Sharing, in words of the config.
DIFFERENCES = {
    "layout": "kind of network",
    "loop": "batch size, epochs, evaluation or checkpoints",
    "data": "data or view",
    "labels": "labels",
    "batches": "order of the examples or split (config.data.order_seed and split_seed)",
    "step": "network, losses or other settings that are no numbers",
    "teachers": "teachers",
    "alone": "draws of their teachers (config.teacher_batch_norm), or outputs that are read from large files",
}


def sharing_of(plan: Plan) -> Sharing:
    """Returns what another plan must have in common with this one to be trained in one step with it."""
    config, spec, dataset, layout = plan.config, plan.spec, plan.dataset, layout_of(plan)
    brings = any(teacher.in_batch for teacher in spec.teachers)  # its batches have a teacher's outputs in them
    loop = (config.batch_size, config.eval_batch_size, config.eval_every, config.select, plan.epochs)
    loop += (config.warmup.epochs, config.checkpoint.every_epochs, config.log_every, spec.steps_per_epoch, plan.devices)
    sizes = tuple((name, len(rows)) for name, rows in dataset.splits.items())
    shared_test = None if dataset.shared_test is None else dataset.shared_test.tobytes()
    data: tuple = (id(dataset.images), dataset.streamed, dataset.skip_bad, dataset.unseen, sizes, shared_test)
    labels, by_batch = _targets_key(dataset), spec.teacher_batch_norm == "batch"
    if layout == UNROLLED:
        data += (spec.stored, spec.view, spec.targets, spec.num_classes, spec.unlabelled, plan.warmup is None)
        # Teachers on batch statistics draw from the seed of the run and are not shared.
        return Sharing(
            layout, loop, data, labels, _batches_key(plan), None, None, id(plan) if by_batch or brings else None
        )
    shapes = jax.tree.map(lambda leaf: (np.shape(leaf), str(np.asarray(leaf).dtype)), (plan.variables, plan.distiller))
    step = (spec, plan.warmup, str(jax.tree.structure(shapes)), tuple(map(str, jax.tree.leaves(shapes))))
    # A teacher that is run in the step is worth sharing only where one pass of it serves all members.
    runs_teachers = any(teacher.runs for teacher in spec.teachers)
    teachers = tuple(map(id, plan.teachers.values())) if runs_teachers else None
    # A stream is read once for all members: processes of its own for each would be too many.
    batches = _batches_key(plan) if runs_teachers or dataset.streamed else None
    alone = id(plan) if (by_batch and runs_teachers) or brings else None
    return Sharing(layout, loop, data, labels, batches, step, teachers, alone)


def why_apart(plans: Sequence[Plan], groups: Sequence[Sequence[int]]) -> str:
    """Returns a sentence about why plans are not all trained in one step, '' where they are.

    Args:
      plans: All plans.
      groups: What `group_plans` returned for them.
    """
    if len(groups) < 2:
        return ""
    found = [sharing_of(plans[group[0]]) for group in groups]
    if {one.layout for one in found} == {IN_TURN}:
        return f"{len(plans)} runs are trained in turn: networks of this kind are not faster together on this backend."
    count = f"{len(plans)} runs are trained in {len(groups)} parts"
    differing = [words for field, words in DIFFERENCES.items() if len({getattr(one, field) for one in found}) > 1]
    if differing:
        return f"{count}, since they differ in: {'; '.join(differing)}."
    return f"{count}, since one would be too large, or they are not equally far."


def _batches_key(plan: Plan) -> Hashable:
    """Returns what decides which examples are in which batch, and what is seen of them."""
    dataset = plan.dataset
    return (dataset.splits["train"].tobytes(), _targets_key(dataset), order_seed(plan.config))


def _targets_key(dataset: Dataset) -> Hashable:
    return tuple(None if array is None else _digest(ByIdentity(array)) for array in (dataset.labels, dataset.soft))


@functools.lru_cache(maxsize=32)
def _digest(array: ByIdentity) -> str:
    """Returns a digest of an array's values: protocols copy labels, and each run of a study has copies of its own."""
    return hashlib.sha256(np.ascontiguousarray(array.value)).hexdigest()


def make_loader(plan: Plan) -> BatchLoader:
    """Returns the loader of a plan's batches."""
    brought = [teacher.name for teacher in plan.spec.teachers if teacher.in_batch]
    return BatchLoader(
        plan.dataset,
        make_order(plan.dataset, plan.config.batch_size, order_seed(plan.config)),
        plan.spec.view,
        plan.devices,
        last=plan.epochs * plan.spec.steps_per_epoch,
        workers=plan.config.data.workers,
        outputs={name: OutputReader(plan.teachers[name].outputs, plan.dataset) for name in brought},
    )


@functools.lru_cache(maxsize=64)
def compiled_population(spec: PopulationSpec, devices: tuple[Device, ...], logs: bool = False) -> Callable[..., Any]:
    """Returns the compiled `population_steps`, the same function for all populations that share a spec.

    Args:
      spec: What shapes the step.
      devices: Devices of this process.
      logs: Whether it is `logged_steps`, which also returns the losses of every step.
    """
    body = functools.partial(logged_steps if logs else population_steps, spec=spec, axis_name=parallel.AXIS)
    return parallel.data_parallel(body, devices, donate_argnums=(0,))


class Population:
    """Plans that are trained in one step, and their arrays on the devices.

    Attributes:
      plans: The plan of each member.
      layout: How they are laid out.
      shares_batches: Whether all members see the same batches.
      shares_logits: Whether all stacked members read the same cached logits of teachers.
      fixed: What the step only reads, on the devices.
      loaders: The loader of the batches that all share, or one for each member.
    """

    def __init__(self, plans: Sequence[Plan], layout: str = ""):
        """Places what the members' steps only read.

        Args:
          plans: Plans that `group_plans` puts together.
          layout: How to lay them out; '' for the layout that LAYOUTS has, or for a run alone the plain one.
        """
        self.plans = tuple(plans)
        self.layout = layout or (layout_of(plans[0]) if len(plans) > 1 else UNROLLED)
        first = _batches_key(plans[0])
        self.shares_batches = all(_batches_key(plan) == first for plan in plans)
        self.devices = plans[0].devices
        self._networks, self._readers = _distinct_teachers(plans) if self.layout == UNROLLED else ((), ())
        self.shares_logits = True
        self.fixed = self._place_fixed()
        self._compiled: dict[str, Any] = {}  # phase -> the compiled step
        self._eval_batches: dict[str, Batch] = {}  # split -> the batches of all stacked members
        self.loaders = [make_loader(plan) for plan in (plans[:1] if self.shares_batches else plans)]

    @property
    def log_every(self) -> int:
        """Steps between two whose losses are logged, the same for all members; 0 for none."""
        return self.plans[0].config.log_every

    @property
    def stacked(self) -> bool:
        """Whether the members' leaves are stacked into one."""
        return self.layout != UNROLLED

    def spec_at(self, epoch: int) -> PopulationSpec:
        """Returns what shapes the step of an epoch, counted from 0."""
        specs = tuple(plan.spec_at(epoch) for plan in (self.plans[:1] if self.stacked else self.plans))
        networks = tuple(teacher for _, _, teacher in self._networks)
        return PopulationSpec(self.layout, specs, self.shares_batches, self.shares_logits, networks, self._readers)

    def compiled(self, epoch: int) -> Any:
        """Returns the compiled `population_steps` of an epoch, counted from 0: all epochs of a phase have one."""
        phase = self.plans[0].spec_at(epoch).phase
        if phase not in self._compiled:
            self._compiled[phase] = compiled_population(self.spec_at(epoch), self.devices, self.log_every > 0)
        return self._compiled[phase]

    def _place_fixed(self) -> Fixed:
        plans, arrays = self.plans, evaluation.resident(self.plans[0].dataset, self.devices)
        if not self.stacked:
            logits = [cached_logits(plan) for plan in plans]
            teachers = {spec.name: plans[m].teachers[n].variables for m, n, spec in self._networks if spec.runs}
            cached = {spec.name: logits[m][n] for m, n, spec in self._networks if spec.cached}
            held_out = _held_out_of(plans, self._readers)
            numbers = tuple(plan.numbers for plan in plans)
        else:
            numbers, teachers = _stack([plan.numbers for plan in plans]), _uncached_teachers(plans[0])
            logits = [cached_logits(plan) for plan in plans]
            self.shares_logits = all(list(map(id, one.values())) == list(map(id, logits[0].values())) for one in logits)
            cached = logits[0] if self.shares_logits else _stack(logits)
            held_out = plans[0].held_out if self.shares_logits else _stack([plan.held_out for plan in plans])
            self.shares_batches &= self.shares_logits  # with other teachers each member reads the batch for itself
        placed = parallel.replicate((teachers, numbers, cached, held_out), self.devices)
        return Fixed(placed[0], arrays, *placed[1:])

    def place(self, carries: Sequence[tuple[TrainState, Sums]]) -> Carry:
        """Places the members' states and sums on the devices."""
        states, sums = zip(*carries, strict=True)
        return self.place_all(states), self.place_all(sums)

    def place_all(self, trees: Sequence[Any]) -> Any:
        """Places one tree of each member on the devices, laid out."""
        return parallel.replicate(_stack(trees) if self.stacked else tuple(trees), self.devices)

    def take(self, tree: Any, member: int) -> Any:
        """Returns a member's part of something that is laid out as the states are."""
        return jax.tree.map(lambda leaf: leaf[member], tree) if self.stacked else tree[member]

    def keep(self, better: Sequence[bool], new: Any, old: Any) -> Any:
        """Returns the new states of the members that are better and the old ones of all others, in their own buffers.

        Args:
          better: For each member, whether its new state is the better one.
          new: States on the devices, laid out; they may be donated afterwards.
          old: Likewise, or None before the first.
        """
        if not self.stacked:
            before = old or (None,) * len(better)
            pairs = zip(better, new, before, strict=True)
            return tuple(jax.tree.map(jax.numpy.copy, state) if is_better else kept for is_better, state, kept in pairs)
        if old is None:
            return jax.tree.map(jax.numpy.copy, new)
        return _select(np.array(better), new, old)

    def take_steps(self, losses: Any, member: int) -> Mapping[str, Any]:
        """Returns a member's part of the losses of steps, as `logged_steps` lays them out."""
        return jax.tree.map(lambda leaf: leaf[:, member], losses) if self.stacked else losses[member]

    def batches(self, epoch: int, start: int, count: int) -> Batch:
        """Returns `count` batches of an epoch from step `start` on, `[devices, steps, (members,) batch]`."""
        parts = [loader.batches(epoch, start, count) for loader in self.loaders]
        if self.shares_batches:
            return parts[0]
        axes = {name: [part[i] for part in parts] for i, name in enumerate(Batch._fields)}
        return Batch(**{
            name: leaves[0] if leaves[0] is None or name == "epoch" else np.stack(list(map(np.asarray, leaves)), axis=2)
            for name, leaves in axes.items()
        })  # fmt: skip

    def score(self, states: Any, split: str) -> Any:
        """Dispatches the evaluation of all members on a split and returns their sums, laid out, not fetched."""
        plan, batch_size = self.plans[0], self.plans[0].config.eval_batch_size
        if self.stacked and not plan.dataset.streamed:
            if split not in self._eval_batches:
                datasets = [plan.dataset for plan in self.plans]
                self._eval_batches[split] = evaluation.stack_batches(datasets, split, batch_size, self.devices)
            batches, variables = self._eval_batches[split], states.variables
            return evaluation.stacked_sums(plan.spec.model, variables, plan.dataset, split, batches, self.devices)
        found = [
            evaluation.split_sums(plan.spec.model, self.take(states, m).variables, plan.dataset, split, batch_size,
                                  self.devices)
            for m, plan in enumerate(self.plans)
        ]  # fmt: skip
        return _stack(jax.device_get(found)) if self.stacked else tuple(found)

    def close(self) -> None:
        """Ends the processes that read images."""
        for loader in self.loaders:
            loader.close()

    def describe(self) -> str:
        """Returns a line about the population for the log."""
        size = sum(map(_member_bytes, self.plans)) / 1e6
        return f"{len(self.plans)} runs are trained in one step ({self.layout}), about {size:.0f} MB on each device"


@jax.jit
def _select(better: Any, new: Any, old: Any) -> Any:
    def choose(a: Any, b: Any) -> Any:
        return jax.numpy.where(better.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return jax.tree.map(choose, new, old)


def _stack(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def _uncached_teachers(plan: Plan) -> dict[str, Any]:
    return {spec.name: plan.teachers[spec.name].variables for spec in plan.spec.teachers if spec.runs}


def _distinct_teachers(plans: Sequence[Plan]) -> tuple[tuple, tuple[tuple[str, ...], ...]]:
    """Returns (member, its name there, spec) of each distinct teacher, and the names of each member's teachers.

    Two teachers are one if network, checkpoint and view are the same; how a config reads the logits may differ.
    """
    found: dict[Hashable, tuple] = {}
    readers = []
    for member, plan in enumerate(plans):
        names = []
        for spec in plan.spec.teachers:
            key = (id(plan.teachers[spec.name]), spec.view, spec.cached)
            named = spec._replace(name=f"{len(found)}:{spec.name}")
            names.append(found.setdefault(key, (member, spec.name, named))[2].name)
        readers.append(tuple(names))
    return tuple(found.values()), tuple(readers)


def _held_out_of(plans: Sequence[Plan], readers: Sequence[tuple[str, ...]]) -> dict[str, np.ndarray]:
    """Returns, for the distinct teachers of unrolled members that ask for it, which rows each was not trained on."""
    found = {}
    for plan, names in zip(plans, readers, strict=True):
        for spec, name in zip(plan.spec.teachers, names, strict=True):
            if spec.name in plan.held_out:
                found[name] = plan.held_out[spec.name]
    return found

"""Runs of a store as rows of a report, and the groups that they form: alike in everything but their seeds."""

import contextlib
import fnmatch
import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from kdjax.config import OPERATIONAL, TEACHER, printed, with_defaults
from kdjax.errors import UserError
from kdjax.store import Run, Store

SEEDS = ("seed", "data.split_seed")
# Fields of a config that change no number, or only by rounding: runs that differ in them are alike. By their whole
# paths, since a teacher's 'checkpoint' and a data set's own 'seed' do change numbers.
WITHOUT_EFFECT = (*OPERATIONAL, "eval_batch_size", "eval_every", "diagnostics", "data.stream", "data.workers")
IMPORTED = ("imported",)  # in place of losses
GENERATION = re.compile(r"(.*)-gen(\d+)-")


class Row(NamedTuple):
    """A run.

    Attributes:
      name: in the store.
      data: name of the data set with its protocols.
      network: name of the network with its arguments.
      method: the config's own name, or its losses.
      losses: their names.
      teachers: (network, losses) of each teacher.
      teacher_runs: their names in the store.
      teacher_distances: squared distance to p* of each, of the checkpoint that the run learnt from; None where nobody
        knows, or where the run reads other columns or other probabilities of it than those that were measured.
      teacher_seeds: of each teacher, (seed, *its own teachers') of one that had some, None where nobody knows.
      seed: of initial weights and order; of imported weights, whose seed nobody knows, what tells their file.
      split: seed of the data split.
      generation: (chain, number) of a run that is named as one, or None.
      family: what makes a method: all of the above but seeds, teachers' teachers too.
      settings: flat name -> value of everything but seeds, the teachers' too.
      result: its result.json, None where it is not finished.
      test: (hash, size) of its test split, or None.
      held_out: share of all examples that this is.
      examples: training examples processed, by the run that it began from too, None where nobody knows.
      costs: run -> examples, None likewise, of its teachers and of theirs, each once.
      published: accuracy (%) that a paper prints for it, None for none.
    """

    name: str
    data: str
    network: str
    method: str
    losses: tuple[str, ...]
    teachers: tuple[tuple[str, str], ...]
    teacher_runs: tuple[str, ...]
    teacher_distances: tuple[float | None, ...]
    teacher_seeds: tuple
    seed: int | str
    split: int
    generation: tuple[str, int] | None
    family: str
    settings: dict[str, Any]
    result: dict | None
    test: tuple[str, int] | None
    held_out: float
    examples: int | None
    costs: dict[str, int | None]
    published: float | None

    def score(self, checkpoint: str, split: str = "test", what: str = "accuracy") -> float | None:
        """Returns a number of the result, None where it has none, such as 'best' of a run that keeps none."""
        return (self.result or {}).get(checkpoint, {}).get(split, {}).get(what)

    @property
    def teacher_examples(self) -> int | None:
        """Training examples that its teachers and theirs processed, None where nobody knows."""
        return None if None in self.costs.values() else sum(self.costs.values())

    @property
    def key(self) -> tuple:
        """(data split, teachers' seeds, seed): its place in nested replication."""
        return self.split, self.teacher_seeds, self.seed


def collect(store: Store, patterns: Sequence[str] = ()) -> list[Row]:
    """Returns the store's runs whose names match one of the patterns.

    Args:
      store: with the runs, and their teachers, which need not match.
      patterns: of shells, '*' matches '/' too; none for all runs.

    Raises:
      UserError: there are none, or a manifest or a result is damaged.
    """
    every = store.runs()
    asked = patterns or ("*",)
    names = [name for name in every if any(fnmatch.fnmatchcase(name, pattern) for pattern in asked)]
    if not every:
        raise UserError(f"The store {store.root} holds no runs; train some, or choose another --store.")
    if not names:
        raise UserError(
            f"None of the {len(every)} runs of {store.root} matches --runs={','.join(asked)}; '*' takes all."
        )
    known: dict[str, Row | None] = {}
    return [row_of(store, name, known) for name in names]


def row_of(store: Store, name: str, known: dict[str, Row | None]) -> Row | None:
    """Returns a run's row, None where the store lacks the run.

    Args:
      store: with it and its teachers.
      name: of the run.
      known: what was read before, which grows.

    Raises:
      UserError: its manifest or result is damaged.
    """
    if name not in known:
        known[name] = None  # ends a ring of teachers, which no training makes
        run = store.run(name)
        manifest = run.manifest
        if manifest is not None:
            with _damage(run):
                asked = with_defaults(manifest["config"])
                teachers = {label: row_of(store, teacher["run"], known) for label, teacher in asked["teachers"].items()}
                origin = row_of(store, asked["init_from"], known) if asked["init_from"] else None
                known[name] = _checked(_row(name, manifest, asked, run.result, teachers, origin))
    return known[name]


@contextlib.contextmanager
def _damage(run: Run) -> Iterator[None]:
    """Turns what a manifest or a result lacks, or has of another type, into one line that names the run."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"{run.path} is damaged: manifest.json or result.json has not what kdjax writes ({type(error).__name__}: "
            f"{error}); mend it, delete the folder, or leave the run out with --runs."
        ) from error


def _checked(row: Row) -> Row:
    """Raises TypeError for an accuracy that is no number."""
    for checkpoint, split in itertools.product(("last", "best"), ("test", "validation")):
        math.isfinite(row.score(checkpoint, split) or 0.0)
    return row


def groups_of(rows: Sequence[Row]) -> list[list[Row]]:
    """Returns finished runs in groups that are alike in everything but their seeds; a run that repeats another is out.

    Args:
      rows: of `collect`.

    Returns:
      Groups by data and network, those without teachers first, each sorted by split, teachers' seeds and seed.
    """
    found: dict[str, dict[tuple, Row]] = {}
    for row in rows:
        if is_counted(row):
            found.setdefault(row.family + json.dumps(row.settings, sort_keys=True), {}).setdefault(row.key, row)
    groups = [sorted(group.values(), key=lambda row: repr(row.key)) for group in found.values()]
    return sorted(groups, key=lambda group: (group[0].data, group[0].network, bool(group[0].teachers)))


def is_counted(row: Row) -> bool:
    """Whether a run is finished and has a test accuracy, which weights that were imported lack."""
    return row.score("last") is not None


def is_unfinished(row: Row) -> bool:
    """Whether a run was begun and has no result yet."""
    return row.result is None


def _row(
    name: str,
    manifest: Mapping,
    asked: Mapping,
    result: dict | None,
    teachers: Mapping[str, Row | None],
    origin: Row | None,
) -> Row:
    losses = tuple(asked["losses"]) or IMPORTED
    method = re.sub(r"-smoke$", "", asked["name"]) or " + ".join(losses)
    generation = GENERATION.fullmatch(name[: name.rfind("-") + 1])
    chain = (generation[1].rpartition("/")[2], int(generation[2])) if generation else None
    data, network = _data(asked["data"]), _with(asked["model"]["name"], asked["model"]["args"])
    runs = tuple(teacher["run"] for teacher in asked["teachers"].values())
    families = [row.family if row else _without_seed(run)[0] for run, row in zip(runs, teachers.values(), strict=True)]
    splits = manifest.get("splits", {})
    test = splits.get("test")
    examples = _examples(asked, result, origin)
    return Row(
        name=name,
        data=data,
        network=network,
        method=method,
        losses=losses,
        teachers=tuple((row.network, " + ".join(row.losses)) if row else ("?", "?") for row in teachers.values()),
        teacher_runs=runs,
        teacher_distances=tuple(
            _distance(uses, row) for uses, row in zip(asked["teachers"].values(), teachers.values(), strict=True)
        ),
        teacher_seeds=tuple(map(_seeds, runs, teachers.values())),
        seed=manifest.get("imported_from", {}).get("sha256", asked["seed"]),
        split=asked["data"]["split_seed"],
        generation=chain,
        family=json.dumps([data, network, method, losses, families, chain]),
        settings=_settings(asked, teachers),
        result=result,
        test=(test["sha256"], test["size"]) if test else None,
        held_out=test["size"] / sum(split["size"] for split in splits.values()) if test else 0.0,
        examples=examples,
        costs=_costs(runs, teachers.values()) | (origin.costs if origin else {}),
        published=printed(asked["published"], [_trained_with(row) for row in teachers.values()]),
    )


def _distance(uses: Mapping, teacher: Row | None) -> float | None:
    uses = {**TEACHER, **uses}
    as_measured = uses["temperature"] == 1 and not uses["classes"] and uses["output"] != "clipped_logits"
    if teacher is None or not as_measured:
        return None
    return teacher.score(str(uses["checkpoint"]), "test", "distance")


def _trained_with(teacher: Row | None) -> tuple[str, ...]:
    if teacher is None:
        return ("?",)
    return () if teacher.losses == IMPORTED else teacher.losses


def _seeds(run: str, teacher: Row | None) -> int | str | tuple | None:
    """Students of one seed's teachers are no repetitions of one another if those had different teachers."""
    if teacher is None:
        return _without_seed(run)[1]
    return (teacher.seed, *teacher.teacher_seeds) if teacher.teacher_seeds else teacher.seed


def _without_seed(run: str) -> tuple[str, int | None]:
    """(name without seeds, seed) as far as a run's name tells them."""
    found = re.fullmatch(r"(.*?)(?:-split\d+)?-s(\d+)", run)
    return (found[1], int(found[2])) if found else (run, None)


def _costs(runs: Sequence[str], teachers: Iterable[Row | None]) -> dict[str, int | None]:
    """Two teachers may have one teacher, or be one run at two checkpoints: what it processed counts once."""
    costs: dict[str, int | None] = {}
    for run, teacher in zip(runs, teachers, strict=True):
        costs |= {run: teacher.examples if teacher else None, **(teacher.costs if teacher else {})}
    return costs


def _examples(asked: Mapping, result: Mapping | None, origin: Row | None) -> int | None:
    """Steps times the batch, and those of the run whose weights it began from; every view of an image counts."""
    if not asked["losses"] or result is None:
        return None
    before = (origin.examples if origin else None) if asked["init_from"] else 0
    return None if before is None else before + result["last"]["step"] * asked["batch_size"]


def _data(data: Mapping) -> str:
    name = data["name"].rstrip("/").rpartition("/")[2] if ":" in data["name"] else data["name"]
    return " + ".join([name, *(_with(protocol, args) for protocol, args in data["protocols"].items())])


def _with(name: str, args: Mapping) -> str:
    """'mlp (hidden 8)'."""
    words = ", ".join(f"{key} {_short(value)}" for key, value in args.items())
    return f"{name} ({words})" if words else name


def _short(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "x".join(map(_short, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value).rpartition("/")[2]


def _settings(asked: Mapping, teachers: Mapping[str, Row | None]) -> dict[str, Any]:
    flat = _flat({key: value for key, value in asked.items() if key != "teachers"})
    origin, seed = _without_seed(asked["init_from"])
    if seed == asked["seed"]:
        flat["init_from"] = origin  # runs of several seeds begin each from the one of its own
    for label, teacher in asked["teachers"].items():
        row, own = teachers[label], {key: value for key, value in teacher.items() if key not in ("run", "made_by")}
        flat |= _flat(own, f"teachers.{label}.")
        inner = row.settings if row else {"run": _without_seed(teacher["run"])[0]}
        flat |= {f"teachers.{label}.{key}": value for key, value in inner.items()}
    return flat


def _flat(value: Mapping, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if prefix + key in (*SEEDS, *WITHOUT_EFFECT):
            continue
        flat |= _flat(item, f"{prefix}{key}.") if isinstance(item, Mapping) else {prefix + key: item}
    return flat

"""What a report knows about one run, read from the run's manifest and result."""

import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from kdjax.config import SEEDS, TEACHER, WITHOUT_EFFECT, teacher_name, unlike_recipe
from kdjax.reporting.published import Published, published_number

IMPORTED = ("imported",)  # stands for the losses of imported weights
GENERATION = re.compile(r"(.*)-gen(\d+)-")

Examples = int | None  # number of training examples that were processed, None if it is not known


class TestSplit(NamedTuple):
    """Identity of a test split: the hash of its row indices, and its number of examples."""

    sha256: str
    size: int


class Generation(NamedTuple):
    """Place of a run in a chain of generations: the name of the chain, and the number, 0 for the first teacher."""

    chain: str
    number: int


class RunRecord(NamedTuple):
    """A run.

    Attributes:
      name: Name in the store.
      data: Name of the data set, with its protocols.
      network: Name of the network, with its arguments.
      method: Name in the config, or the losses joined by ' + '.
      losses: Names of the losses.
      teachers: Network and losses of each teacher, '?' if the store lacks it.
      teacher_runs: Name in the store of each teacher, or of its file of outputs.
      teacher_distances: Squared distance to p* of each teacher, at the checkpoint that the run learned from; None if it
        was not measured, or if the run reads other columns or probabilities than those that were measured.
      teacher_seeds: Seed of each teacher; a tuple with the seeds of its own teachers, if it has any; None if not known.
      seed: Seed of the draw: of initial weights and order, or of an order that several runs share; the hash of the file
        for imported weights, whose seed is not known.
      split: Seed of the data split.
      generation: Place in a chain of generations; None if the run's name does not say so.
      family: Identity of the method: all of the above but seeds, also of the teachers' teachers.
      settings: Flat name of a config field -> value, without seeds, with those of the teachers.
      result: The run's result.json, or None if it is not finished.
      test: Its test split, or None.
      held_out: Share of all examples that are in the test split.
      examples: Training examples processed, with those of the run whose weights it started from.
      costs: Name -> training examples processed, for each of its teachers and each of their teachers.
      published: Accuracy that a paper reports for such a run, or None.
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
    generation: Generation | None
    family: str
    settings: dict[str, object]
    result: dict | None
    test: TestSplit | None
    held_out: float
    examples: Examples
    costs: dict[str, Examples]
    published: Published | None

    def score(self, checkpoint: str, split: str = "test", measure: str = "accuracy") -> float | None:
        """Returns a number of the result, or None if it has none, such as 'best' of a run that keeps no best."""
        return (self.result or {}).get(checkpoint, {}).get(split, {}).get(measure)

    @property
    def teacher_examples(self) -> Examples:
        """Training examples that its teachers and their teachers processed."""
        counts = [count for count in self.costs.values() if count is not None]
        return sum(counts) if len(counts) == len(self.costs) else None

    @property
    def key(self) -> tuple:
        """Place in nested replication: data split, seeds of the teachers, seed."""
        return self.split, self.teacher_seeds, self.seed

    @property
    def is_counted(self) -> bool:
        """Whether the run is finished and has a test accuracy, which imported weights may lack."""
        return self.score("last") is not None

    @property
    def is_unfinished(self) -> bool:
        """Whether the run was started and has no result yet."""
        return self.result is None


def make_record(
    name: str,
    manifest: Mapping,
    config: Mapping,
    result: dict | None,
    teachers: Mapping[str, RunRecord | None],
    origin: RunRecord | None,
) -> RunRecord:
    """Makes the record of a run.

    Args:
      name: Name in the store.
      manifest: The run's manifest.
      config: The config in the manifest, with defaults for fields that it lacks.
      result: The run's result, or None if it is not finished.
      teachers: Key in config.teachers -> record of that teacher, None if the store lacks it.
      origin: Record of the run whose weights it started from, or None.

    Raises:
      KeyError, TypeError, AttributeError, ValueError: The manifest or the result is damaged.
    """
    losses = tuple(config["losses"]) or IMPORTED
    method = re.sub(r"-smoke$", "", config["name"]) or " + ".join(losses)
    data, network = _data(config["data"]), _with_arguments(config["model"]["name"], config["model"]["args"])
    uses = list(config["teachers"].values())
    runs, records = tuple(map(teacher_name, uses)), list(teachers.values())
    families = [row.family if row else _without_seed(run)[0] for run, row in zip(runs, records, strict=True)]
    chain = _generation(name)
    test, held_out = _test_split(manifest.get("splits", {}))
    record = RunRecord(
        name=name,
        data=data,
        network=network,
        method=method,
        losses=losses,
        teachers=tuple(map(_words, uses, records)),
        teacher_runs=runs,
        teacher_distances=tuple(itertools.starmap(_distance, zip(uses, records, strict=True))),
        teacher_seeds=tuple(map(_seeds, runs, records)),
        seed=manifest.get("imported_from", {}).get("sha256", _draw(config)),
        split=config["data"]["split_seed"],
        generation=chain,
        family=json.dumps([data, network, method, losses, families, chain]),
        settings=_settings(config, teachers),
        result=result,
        test=test,
        held_out=held_out,
        examples=_examples(config, result, origin),
        costs=_costs(runs, records) | (origin.costs if origin else {}),
        published=published_number(
            config["published"], [_losses_of(row) for row in records], _unlike_paper(manifest, config, records)
        ),
    )
    _check_accuracies(record)
    return record


def _check_accuracies(record: RunRecord) -> None:
    """Raises a TypeError for an accuracy that is not a number."""
    for checkpoint, split in itertools.product(("last", "best"), ("test", "validation")):
        math.isfinite(record.score(checkpoint, split) or 0.0)


def _unlike_paper(manifest: Mapping, config: Mapping, teachers: Iterable[RunRecord | None]) -> list[str]:
    """Returns in what a run differs from what its published accuracy was measured with, its teachers included."""
    facts, splits = config["published"].get("recipe", {}), manifest.get("splits", {})
    found = unlike_recipe(config) if config["published"] else []
    images = sum(splits[split]["size"] for split in ("train", "validation") if split in splits)
    if images and images != facts.get("images", images):
        found.insert(0, f"{images:,} training images instead of {facts['images']:,}")
    for teacher in filter(None, teachers):
        asked = facts.get("teacher", "")
        if not re.search(rf"\b{re.escape(asked)}\b", teacher.network):
            found.append(f"teacher {teacher.network} instead of {asked}")
        found += [f"teacher's {difference}" for difference in (teacher.published.unlike if teacher.published else ())]
    return found


def _words(use: Mapping, teacher: RunRecord | None) -> tuple[str, str]:
    """Returns a teacher's network and losses, as far as they are known."""
    if teacher is None:
        return ("stored outputs", teacher_name(use)) if use["logits"] else ("?", "?")
    return teacher.network, " + ".join(teacher.losses)


def _generation(name: str) -> Generation | None:
    found = GENERATION.fullmatch(name[: name.rfind("-") + 1])
    return Generation(found[1].rpartition("/")[2], int(found[2])) if found else None


def _test_split(splits: Mapping[str, Mapping]) -> tuple[TestSplit | None, float]:
    """Returns the test split, and its share of all examples."""
    if not splits.get("test"):
        return None, 0.0
    test = TestSplit(splits["test"]["sha256"], splits["test"]["size"])
    return test, test.size / sum(split["size"] for split in splits.values())


def _distance(use: Mapping, teacher: RunRecord | None) -> float | None:
    """Returns the teacher's distance to p*, if the student learns from the probabilities that were measured."""
    use = {**TEACHER, **use}
    as_measured = use["temperature"] == 1 and not use["classes"] and use["output"] != "clipped_logits"
    if teacher is None or not as_measured:
        return None
    return teacher.score(str(use["checkpoint"]), "test", "distance")


def _losses_of(teacher: RunRecord | None) -> tuple[str, ...]:
    if teacher is None:
        return ("?",)
    return () if teacher.losses == IMPORTED else teacher.losses


def _draw(config: Mapping) -> int:
    """Returns what identifies a draw: runs of different seeds that share their order are one draw, not several."""
    order = config["data"]["order_seed"]
    return config["seed"] if order < 0 else order


def _seeds(run: str, teacher: RunRecord | None) -> int | str | tuple | None:
    """Returns a teacher's seed, with those of its own teachers.

    Students of teachers of one seed are no repetitions of one another if these teachers had different teachers.
    """
    if teacher is None:
        return _without_seed(run)[1]
    return (teacher.seed, *teacher.teacher_seeds) if teacher.teacher_seeds else teacher.seed


def _without_seed(run: str) -> tuple[str, int | None]:
    """Returns a run's name without its seeds, and its seed, as far as the name has them."""
    found = re.fullmatch(r"(.*?)(?:-split\d+)?-s(\d+)", run)
    return (found[1], int(found[2])) if found else (run, None)


def _costs(runs: Sequence[str], teachers: Iterable[RunRecord | None]) -> dict[str, Examples]:
    """Returns run -> examples processed, so that a run counts once that is the teacher of two others."""
    costs: dict[str, Examples] = {}
    for run, teacher in zip(runs, teachers, strict=True):
        costs |= {run: teacher.examples if teacher else None, **(teacher.costs if teacher else {})}
    return costs


def _examples(config: Mapping, result: Mapping | None, origin: RunRecord | None) -> Examples:
    """Returns steps times batch size, plus the examples of the run whose weights the training started from."""
    if not config["losses"] or result is None:
        return None
    before = (origin.examples if origin else None) if config["init_from"] else 0
    return None if before is None else before + result["last"]["step"] * config["batch_size"]


def _data(data: Mapping) -> str:
    name = data["name"].rstrip("/").rpartition("/")[2] if ":" in data["name"] else data["name"]
    return " + ".join([name, *(_with_arguments(protocol, args) for protocol, args in data["protocols"].items())])


def _with_arguments(name: str, args: Mapping[str, object]) -> str:
    """Returns a name with its arguments, such as 'mlp (hidden 8)'."""
    words = ", ".join(f"{key} {_short(value)}" for key, value in args.items())
    return f"{name} ({words})" if words else name


def _short(value: object) -> str:
    if isinstance(value, list | tuple):
        return "x".join(map(_short, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value).rpartition("/")[2]


def _settings(config: Mapping, teachers: Mapping[str, RunRecord | None]) -> dict[str, object]:
    """Returns the fields that tell settings of a method apart; those of the teachers begin with 'teachers.KEY.'."""
    flat = _flat({key: value for key, value in config.items() if key != "teachers"})
    origin, seed = _without_seed(config["init_from"])
    if seed == config["seed"]:
        flat["init_from"] = origin  # runs of several seeds that start each from the run of its own seed are one setting
    for key, use in config["teachers"].items():
        record, own = (
            teachers[key],
            {field: value for field, value in use.items() if field not in ("run", "logits", "made_by")},
        )
        flat |= _flat(own, f"teachers.{key}.")
        inner = record.settings if record else {"run": _without_seed(teacher_name(use))[0]}
        flat |= {f"teachers.{key}.{field}": value for field, value in inner.items()}
    return flat


def _flat(value: Mapping, prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, item in value.items():
        if prefix + key in (*SEEDS, *WITHOUT_EFFECT):
            continue
        flat |= _flat(item, f"{prefix}{key}.") if isinstance(item, Mapping) else {prefix + key: item}
    return flat

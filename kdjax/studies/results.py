"""The results of a study as data: one row a run in a JSON file, which outlives the store of the runs."""

import base64
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from kdjax.config import TEACHER, defaults
from kdjax.errors import UserError
from kdjax.store.files import plain, read_json, write_atomic
from kdjax.studies.fields import RunConfig

LATER_TEACHER_FIELDS = ("logits",)
PARTS = ("pilot", "teacher", "student")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResultRow:
    """What is kept of one run, or of one way to read a run as a teacher.

    Attributes:
      part: 'pilot' for a run that chose a setting, 'teacher' or 'student'.
      seed: The outermost seed.
      teacher: Name of the teacher in the study; '' for a student without one.
      method: Name of a student's losses in the study; '' for a teacher.
      student: Number of the student among those of its teacher and method.
      run: Name of the run in the store that it was trained in.
      rate: Its learning rate.
      diverged: Whether its loss was not finite, so that it counts at what it had reached.
      scores: Name of a measure -> its value.
      correct: Whether each test image was classified rightly, one bit an image in base 64; '' where the study does not
        need it.
      bins: Reliability of a teacher: (examples, sum of the confidence, right ones) of each bin of the confidence.
    """

    part: str
    seed: int
    run: str
    rate: float
    teacher: str = ""
    method: str = ""
    student: int = 0
    diverged: bool = False
    scores: dict[str, float] = dataclasses.field(default_factory=dict)
    correct: str = ""
    bins: tuple[tuple[float, float, float], ...] = ()

    @property
    def key(self) -> tuple:
        """What tells a row from all others of the study."""
        return self.part, self.seed, self.teacher, self.method, self.student, self.run


@dataclasses.dataclass(frozen=True)
class Results:
    """The rows of a study, and what its pilot chose.

    Attributes:
      rows: Rows in the order in which they were made.
      choices: Name of a choice -> its value, such as the learning rate of each teacher.
      finished: Outermost seeds of which every run is finished.
    """

    rows: tuple[ResultRow, ...] = ()
    choices: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    finished: tuple[int, ...] = ()

    def of(self, part: str, **fields: Any) -> list[ResultRow]:
        """Returns the rows of a part whose fields have the given values."""
        return [
            row for row in self.rows if row.part == part and all(getattr(row, name) == v for name, v in fields.items())
        ]


class ResultsFile:
    """The results of a study while it runs: read from the project and from the store, and written to the store.

    Args:
      path: File in the store.
      published: File in the project with the rows of runs that were finished before, which need no store; it may be
        missing.
      design: Hash of the study's design, see `design_of`.

    Attributes:
      results: The results so far.

    Raises:
      UserError: A file has the results of another design, or is damaged.
    """

    def __init__(self, path: pathlib.Path, published: pathlib.Path | None, design: str):
        self.path, self.design = path, design
        found = [load(file, design) for file in (path, published) if file is not None and file.is_file()]
        # Both grow seed by seed; the one that is further has all that the other has.
        self.results = max(found, key=lambda each: (len(each.finished), len(each.rows)), default=Results())

    def choose(self, choices: Mapping[str, Any], rows: Iterable[ResultRow]) -> None:
        """Adds what the pilot chose, and its rows."""
        self._write(dataclasses.replace(self.results, rows=(*self.results.rows, *rows), choices=dict(choices)))

    def finish(self, seed: int, rows: Iterable[ResultRow]) -> None:
        """Adds the rows of a seed of which every run is finished."""
        finished = (*self.results.finished, seed)
        self._write(dataclasses.replace(self.results, rows=(*self.results.rows, *rows), finished=finished))

    def _write(self, results: Results) -> None:
        self.results = results
        write_atomic(self.path, dumps(results, self.design))


def dumps(results: Results, design: str) -> str:
    """Returns the text of a file of results: JSON with one row a line."""
    empty = {"teacher": "", "method": "", "student": 0, "diverged": False, "correct": "", "bins": ()}
    rows = []
    for row in results.rows:
        fields = {name: v for name, v in dataclasses.asdict(row).items() if name not in empty or v != empty[name]}
        rows.append(json.dumps(plain(_rounded(fields)), allow_nan=False))
    head = json.dumps(plain(_rounded({"design": design, "choices": results.choices, "finished": results.finished})))
    return head[:-1] + ',\n"runs": [\n' + ",\n".join(rows) + "\n]}\n"


def _rounded(value: Any) -> Any:
    """Returns a value with floats of seven significant digits, which is what a score in float32 has."""
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, Mapping):
        return {name: _rounded(v) for name, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, tuple | list) else value


def load(path: pathlib.Path, design: str = "") -> Results:
    """Reads a file of results.

    Args:
      path: The file.
      design: Hash of the design that the results must be of; '' accepts any.

    Raises:
      UserError: The file is missing or damaged, or has the results of another design.
    """
    record = read_json(path)
    if record is None:
        raise UserError(f"there is no file of results {path}; run the study first.")
    if design and record.get("design") != design:
        raise UserError(
            f"{path} has the results of another design of this study; restore the study's config, or move the file "
            "away to begin anew."
        )
    try:
        rows = tuple(ResultRow(**{**row, "bins": tuple(map(tuple, row.get("bins", ())))}) for row in record["runs"])
        return Results(rows, record["choices"], tuple(record["finished"]))
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}); restore it.") from error


def later(default: Any) -> Any:
    """Returns a field of a dataclass that came after results were made: at its default it changes no design."""
    return dataclasses.field(default=default, metadata={"later": True})


def essential(value: Any) -> dict[str, Any]:
    """Returns the fields of a dataclass that belong to a design; see `later`."""
    fields = {field.name: (getattr(value, field.name), field) for field in dataclasses.fields(value)}
    return {name: v for name, (v, field) in fields.items() if not field.metadata.get("later") or v != field.default}


def design_of(fields: Mapping[str, Any]) -> str:
    """Returns the sha256 in hexadecimal of a design: of everything in which its configs differ from the defaults.

    Args:
      fields: Name -> value: numbers, texts, configs of runs, and sequences and mappings of these.
    """
    text = json.dumps(_essence(fields), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _essence(value: Any) -> Any:
    if isinstance(value, RunConfig):  # fields that come later, at their defaults, do not change a design
        standard = dict(_leaves(defaults().to_dict()))
        leaves = [(path, v) for path, v in _leaves(value.to_dict()) if not _is_later(path, v)]
        return {path: _essence(v) for path, v in leaves if path not in standard or v != standard[path]}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: _essence(v) for name, v in essential(value).items()}
    if isinstance(value, Mapping):
        return {str(name): _essence(v) for name, v in value.items()}
    return [_essence(v) for v in value] if isinstance(value, tuple | list) else value


def _is_later(path: str, value: Any) -> bool:
    """Whether a leaf came after the first results were kept: a teacher's field at its default, or a paper's recipe."""
    if path.startswith("published.recipe."):
        return True
    section, _, field = path.rpartition(".")
    return section.startswith("teachers.") and field in LATER_TEACHER_FIELDS and value == TEACHER[field]


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def pack(correct: np.ndarray) -> str:
    """Returns bools [examples] as text, one bit each."""
    return base64.b64encode(np.packbits(np.asarray(correct, bool)).tobytes()).decode()


def unpack(text: str, examples: int) -> np.ndarray:
    """Returns the bools [examples] that `pack` turned into text."""
    return np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8), count=examples).astype(bool)


def by_seed(rows: Sequence[ResultRow], value: Callable[[ResultRow], float]) -> dict[int, float]:
    """Returns seed -> mean of a value over the rows of the seed."""
    seeds = dict.fromkeys(row.seed for row in rows)
    return {seed: float(np.mean([value(row) for row in rows if row.seed == seed])) for seed in seeds}

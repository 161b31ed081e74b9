"""Files of a teacher's outputs: logits in .npy, its top classes in .npz, and beside each what they are outputs of.

Beside `teacher.npy`, the companion `teacher.npy.json` says from which images the outputs were computed, in which order,
and has the hash of the file. A file that was made elsewhere has no companion.
"""

import math
import os
import pathlib
from collections.abc import Iterable, Mapping
from types import NoneType
from typing import Any, NamedTuple

import numpy as np

from kdjax import bounded
from kdjax.errors import UserError
from kdjax.interop.weight_files import file_sha256
from kdjax.store.files import disk_errors, make_folder, read_json, remove_leftovers, sync, write_json
from kdjax.types import TopK

CHUNK = 1 << 24  # numbers that are looked at together
ABOVE_ONE = 1e-3  # by which float16 probabilities of a row may add up to more than 1
MOST_CLASSES = 1 << 24
# The entries of a companion and their types. `rows` has the 'sha256' of the rows of the data set, `data` the hashes of
# its content, and `trained_on` the config.data of the run that put the outputs out; `labelled` is the hash of the rows
# whose labels that run was trained on. `view` was drawn for the visits 0, 1, ... from `seed`.
COMPANION = {
    **{"sha256": str, "run": str, "checkpoint": str, "step": int, "split": str, "rows": Mapping, "data": Mapping},
    **{"view": str, "seed": int, "trained_on": (Mapping, NoneType), "labelled": (str, NoneType), "loss_space": str},
    "class_names": (list, NoneType),
}
DTYPES = ("float16", "float32", "float64")


class StoredOutputs(NamedTuple):
    """A file of outputs, opened.

    Attributes:
      path: Path of the file.
      logits: [rows, classes] or [rows, views, classes], in the file until it is read; None for a file of top classes.
      top: The top classes, leaves [rows, k] or [rows, views, k], in memory; None for a file of logits.
      sha256: Hash of the file.
      about: What its companion says; {} without one.
    """

    path: str
    logits: np.ndarray | None
    top: TopK | None
    sha256: str
    about: Mapping[str, Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """[rows, classes or k], with an axis of views between them if there is one."""
        return self.logits.shape if self.top is None else self.top.indices.shape

    @property
    def views(self) -> int:
        """Number of outputs for each example; 0 where the file has no axis for them."""
        return self.shape[1] if len(self.shape) == 3 else 0


def companion_of(path: os.PathLike | str) -> pathlib.Path:
    """Returns the path of the companion of a file of outputs."""
    return pathlib.Path(f"{path}.json")


def hashes_of_files(teachers: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Returns name -> hash of the file of each teacher of a config that is one, of those that are still there."""
    files = {name: teacher.get("logits", "") for name, teacher in teachers.items()}
    return {name: file_sha256(path) for name, path in files.items() if path and os.path.isfile(path)}


def read_outputs(path: str) -> StoredOutputs:
    """Opens a file of outputs; logits stay on disk, where they are looked through once.

    Args:
      path: Path of an .npy file of logits, or an .npz file with 'indices' and 'log_probs'.

    Raises:
      UserError: The file is missing, damaged or something else, its companion belongs to another file, a number is NaN,
        or probabilities stand where logits or logarithms belong.
    """
    sha256 = file_sha256(path)
    about = _read_companion(companion_of(path))
    if about and about.get("sha256") != sha256:
        raise UserError(
            f"{path} was replaced since {companion_of(path)} was written; write both anew with kdjax.predict, or "
            "delete the latter if the rows are in the data set's order."
        )
    if path.endswith(".npz"):
        return StoredOutputs(path, None, _read_top(path), sha256, about)
    logits = _map(path)
    _check_logits(logits, path)
    return StoredOutputs(path, logits, None, sha256, about)


def _read_companion(path: pathlib.Path) -> Mapping[str, Any]:
    """Returns what a companion says, {} where there is none."""
    try:
        about = read_json(path) or {}
    except UserError as error:
        raise UserError(f"{path} is damaged; write it and its file anew with kdjax.predict.") from error
    for entry, value in about.items():
        if entry in COMPANION and not isinstance(value, COMPANION[entry]):
            raise UserError(
                f"{path} is damaged: '{entry}' is {value!r}; write it and its file anew with kdjax.predict."
            )
    return about


def _map(path: str) -> np.ndarray:
    """Returns the array of an .npy file, which stays on disk."""
    try:
        bounded.open_regular(path).close()
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}.") from error
    except (ValueError, TypeError, EOFError, OverflowError, SyntaxError, MemoryError) as error:
        what = " ".join(str(error).split())[:160]
        raise UserError(f"{path} is not an .npy file of logits ({what}); write it with np.save.") from error


def _check_logits(logits: Any, path: str) -> None:
    if not isinstance(logits, np.ndarray) or str(logits.dtype) not in DTYPES or logits.ndim not in (2, 3):
        found = f"{logits.dtype} {list(logits.shape)}" if isinstance(logits, np.ndarray) else type(logits).__name__
        raise UserError(
            f"{path} must have logits [rows, classes] or [rows, views, classes] of float16 or float32, not {found}."
        )
    if 0 in logits.shape:
        raise UserError(f"{path} is empty: {list(logits.shape)}.")
    rows = max(1, CHUNK // math.prod(logits.shape[1:]))
    probabilities = True
    for start in range(0, len(logits), rows):
        part = np.asarray(logits[start : start + rows])
        bad = np.isnan(part) | (part == np.inf)
        if bad.any():
            raise UserError(f"{path} has a number that is no logit, NaN or infinity, in row {start + _first(bad)}.")
        probabilities = probabilities and bool(part.min() >= 0) and _sums_to_one(part)
    if probabilities:
        raise UserError(f"{path} has probabilities, which add up to 1 in every row; store logits, or their logarithms.")


def _first(bad: np.ndarray) -> int:
    return int(np.argmax(bad.reshape(len(bad), -1).any(axis=1)))


def _sums_to_one(part: np.ndarray) -> bool:
    return bool(np.all(np.abs(part.sum(axis=-1, dtype=np.float64) - 1) < 1e-2))


def _read_top(path: str) -> TopK:
    try:
        arrays = bounded.read_npz(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}.") from error
    except ValueError as error:
        what = " ".join(str(error).split())[:160]
        raise UserError(f"{path} is not an .npz file of arrays ({what}); write it with np.savez.") from error
    if not {"indices", "log_probs"} <= set(arrays):
        there = ", ".join(sorted(arrays)) or "nothing"
        raise UserError(f"{path} must have the arrays 'indices' and 'log_probs' of the top classes; it has {there}.")
    indices, log_probs = arrays["indices"], arrays["log_probs"]
    if indices.dtype.kind not in "iu" or str(log_probs.dtype) not in DTYPES or indices.shape != log_probs.shape:
        found = f"{indices.dtype} {list(indices.shape)} and {log_probs.dtype} {list(log_probs.shape)}"
        raise UserError(f"{path} must have integer indices and floating log_probs of one shape, not {found}.")
    if indices.ndim not in (2, 3) or not indices.size:
        raise UserError(f"{path} must have indices [rows, k] or [rows, views, k], not {list(indices.shape)}.")
    _check_top(indices, log_probs, path)
    return TopK(indices.astype(np.int32), log_probs)


def _check_top(indices: np.ndarray, log_probs: np.ndarray, path: str) -> None:
    if indices.min() < 0 or indices.max() >= MOST_CLASSES:
        raise UserError(f"{path} has indices from {indices.min()} to {indices.max()}, which are no classes.")
    ordered = np.sort(indices, axis=-1)
    twice = ordered[..., 1:] == ordered[..., :-1]
    if twice.any():
        raise UserError(f"{path} has one class twice in row {_first(twice)}.")
    with np.errstate(over="ignore"):
        sums = np.exp(log_probs.astype(np.float64)).sum(axis=-1)
    wrong = ~(sums <= 1 + ABOVE_ONE)
    if wrong.any():
        raise UserError(
            f"{path} has log_probs in row {_first(wrong[..., None])} whose probabilities do not add up to at most 1; "
            "they are natural logarithms of the probabilities among all classes."
        )


def write_logits(
    path: str, parts: Iterable[np.ndarray], shape: tuple[int, ...], dtype: str, about: Mapping[str, Any]
) -> None:
    """Writes logits and their companion; parts are written as they come, and a killed process leaves the old file.

    Args:
      path: Path of the file, which ends in '.npy'.
      parts: Logits of consecutive rows.
      shape: Shape of the whole.
      dtype: 'float16' or 'float32'.
      about: What the companion says beside the hash of the file.

    Raises:
      UserError: The file cannot be written, or float16 has no such number.
    """

    def write(temporary: pathlib.Path) -> None:
        whole, start = np.lib.format.open_memmap(temporary, "w+", dtype=np.dtype(dtype), shape=shape), 0
        for part in parts:
            with np.errstate(over="ignore"):
                whole[start : start + len(part)] = part
            if np.isinf(whole[start : start + len(part)]).any() and np.isfinite(part).all():
                raise UserError(f"{dtype} has no numbers as large as these logits; leave --dtype at float32.")
            start += len(part)
        whole.flush()

    _write(path, write, about)


def write_top(path: str, top: TopK, about: Mapping[str, Any]) -> None:
    """Writes top classes and their companion.

    Args:
      path: Path of the file, which ends in '.npz'.
      top: The top classes, leaves [rows, k] or [rows, views, k].
      about: What the companion says beside the hash of the file.

    Raises:
      UserError: The file cannot be written.
    """

    def write(temporary: pathlib.Path) -> None:
        with open(temporary, "wb") as file:
            np.savez(file, indices=top.indices, log_probs=top.log_probs)

    _write(path, write, about)


def _write(path: str, write: Any, about: Mapping[str, Any]) -> None:
    target = pathlib.Path(path)
    temporary = target.with_name(f"{target.name}.{os.uname().nodename}.{os.getpid()}.tmp")
    with disk_errors(target, flag="--out"):
        make_folder(target.parent)
        remove_leftovers(target.parent, target.name)
        try:
            write(temporary)
            sync(temporary)
            companion_of(target).unlink(missing_ok=True)  # it must never stand beside outputs of other images
            os.replace(temporary, target)
            sync(target.parent)
        finally:
            temporary.unlink(missing_ok=True)
    write_json(companion_of(target), {**about, "sha256": file_sha256(target)}, "--out")

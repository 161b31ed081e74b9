"""One run: its manifest, metrics, result, lock and checkpoints."""

import contextlib
import functools
import itertools
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from absl import logging

from kdjax.config import check_stored, differences, with_defaults
from kdjax.errors import UserError
from kdjax.own_code import NOBODY, Trust
from kdjax.store import files, lock
from kdjax.store.checkpoints import Checkpoints
from kdjax.store.content import changes
from kdjax.store.files import (
    disk_errors,
    make_folder,
    plain,
    read_json,
    remove_leftovers,
    sync,
    write_atomic,
    write_json,
)
from kdjax.store.lock import is_locked, locked

FORMAT = 2  # number of the format of a run's folder; increase it if older versions of kdjax cannot read the new one
READABLE = (1, 2)  # runs of format 1 have no packed checkpoints
MANIFEST = "manifest.json"
METRICS = "metrics.jsonl"
STEPS = "steps.jsonl"  # the losses of single steps, where config.log_every asks for them
RESULT = "result.json"
LOCK = lock.FILE
SAVED = "saved"  # exists since the first checkpoint was on disk
CHECKPOINTS = "checkpoints"
SCORES: tuple[str, ...] = ("accuracy", "loss", "top5", "distance")  # numbers that a split of a result may have


class Run(Checkpoints):
    """The folder of a run; made by `Store.run` and `Store.find`.

    Attributes:
      name: Name of the run: the path of its folder in the store, with '/'.
      path: Path of its folder.
      trust: Code that is imported if the manifest names it.
    """

    def __init__(self, name: str, path: pathlib.Path, trust: Trust = NOBODY):
        super().__init__(path / CHECKPOINTS, owner=name)
        self.name = name
        self.path = path
        self.trust = trust
        self._noted = False

    @property
    def manifest(self) -> dict | None:
        """The manifest: format, resolved config, versions and so on; None before the run began.

        Raises:
          UserError: The manifest is damaged, or has a format that this version of kdjax cannot read.
        """
        manifest = read_json(self.path / MANIFEST)
        if manifest is not None:
            check_manifest(manifest, self.path / MANIFEST)
        return manifest

    @property
    def result(self) -> dict | None:
        """The result; None until the run is finished.

        Raises:
          UserError: The result is damaged.
        """
        result = read_json(self.path / RESULT)
        if result is not None:
            check_result(result, self.path / RESULT)
        return result

    def begin(self, manifest: Mapping, complete: Callable[[dict], Mapping] | None = None) -> None:
        """Writes the manifest of a new run, or checks that an existing run has the same config.

        Args:
          manifest: Mapping that JSON can represent, with the resolved config as 'config'; 'format' is added here.
          complete: Completes a stored config by what an older kdjax did not have and this file cannot know, such as
            hyper-parameters of losses.

        Raises:
          UserError: The run exists with another config (the message has the fields), it has lost its manifest, or the
            disk cannot be written.
        """
        manifest = plain({"format": FORMAT, **manifest})
        old = self.manifest
        if old is None:
            self.refuse_without_manifest()
            write_json(self.path / MANIFEST, manifest)
            return
        # Both with defaults, since a run of an older version of kdjax lacks the fields that were added later.
        before, now = (with_defaults(config) for config in (old.get("config", {}), manifest["config"]))
        before, now = plain(complete(before) if complete else before), plain(now)
        changed = differences(before, now)
        if changed:
            listed = " ".join("; ".join(changed).split())  # on one line, whatever the names of the fields are
            raise UserError(
                f"Run '{self.name}' exists with another config ({listed}); restore these fields, "
                f"choose another --run or --store, or delete {self.path}."
            )

    def amend(self, manifest: Mapping) -> None:
        """Writes a manifest in place of the present one, from which it differs in what does not concern the config."""
        write_json(self.path / MANIFEST, plain(manifest))

    def refuse_without_manifest(self) -> None:
        """Refuses a folder that has a run's checkpoints, rows or result, but no manifest that says what they are of.

        Raises:
          UserError: The folder is such a folder.
        """
        if (self.path / MANIFEST).exists():
            return
        there = [name for name in (RESULT, SAVED, METRICS) if (self.path / name).exists()]
        there += [CHECKPOINTS] if self.steps() else []
        if there:
            raise UserError(
                f"{self.path} has {there[0]}, but no {MANIFEST}, which says what was trained; put it back, choose "
                f"another --run or --store, or delete {self.path}."
            )

    def check_content(self, hashes: Mapping[str, Any]) -> None:
        """Refuses data, teachers or code that are not those of the run, although the config names the same.

        Args:
          hashes: What there is now, a part of what the manifest has as 'hashes': 'data' -> {'images', 'labels', ...},
            'splits' -> name -> hash, 'teachers' -> name -> hash, 'init_from' -> hash, 'code' -> name -> hash.

        Raises:
          UserError: A hash differs; the message says of what, and the two ways out.
        """
        manifest = self.manifest or {}
        if "hashes" not in manifest and any(hashes.values()):
            _warn_of_missing_hashes(self.name)
        changed = changes({"splits": manifest.get("splits", {}), **manifest.get("hashes", {})}, hashes)
        if changed:
            raise UserError(
                f"run '{self.name}' was made with other content under the same names: {', '.join(changed)} changed "
                f"since; put the former content back, or train under another --run (or delete {self.path})."
            )

    def check_checkpoints(self) -> None:
        """Refuses an unfinished run whose checkpoints have all disappeared: it would begin anew in silence.

        Raises:
          UserError: There are none, although there was one.
        """
        if (self.path / SAVED).exists() and self.result is None and not self.steps():
            raise UserError(
                f"run '{self.name}' has lost all its checkpoints: {self.path / CHECKPOINTS} has none, and the run is "
                f"not finished; put them back, or train anew under another --run (or delete {self.path})."
            )

    def note_saved(self) -> None:
        """Notes that a checkpoint is on disk, if one is; from then on their absence is a loss."""
        if not self._noted and self.steps():
            if not (self.path / SAVED).exists():
                write_atomic(self.path / SAVED, "This run has had a checkpoint.\n")
            self._noted = True

    def discard_if_empty(self) -> None:
        """Deletes the manifest of a run that has no checkpoint and no metrics, so that its name can be used again."""
        if not self.steps() and not self.metrics():
            (self.path / MANIFEST).unlink(missing_ok=True)

    def write_result(self, result: Mapping) -> None:
        """Writes result.json atomically; a run that has this file is finished."""
        write_json(self.path / RESULT, result)

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Adds a line to metrics.jsonl; nan and inf are written as null."""
        path = self.path / METRICS
        with disk_errors(path):
            make_folder(path.parent)
            files.append_line(path, json.dumps(plain(row), allow_nan=False))
        self.note_saved()

    def append_steps(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Adds lines to steps.jsonl; nan and inf are written as null."""
        path, lines = self.path / STEPS, [json.dumps(plain(row), allow_nan=False) for row in rows]
        if lines:
            with disk_errors(path):
                make_folder(path.parent)
                files.append_line(path, "\n".join(lines))

    def logged_steps(self) -> list[dict]:
        """Returns the rows of steps.jsonl, such as {'step': 10, 'loss': 0.7, 'losses/kd': 0.6}.

        An incomplete last line of a killed process is left out.

        Raises:
          UserError: A line is damaged.
        """
        return _rows(self.path / STEPS, "step")

    def cut_steps(self, after_step: int) -> None:
        """Deletes the rows of later steps from steps.jsonl, before a run is resumed from a checkpoint."""
        path = self.path / STEPS
        if path.exists():
            rows = [row for row in self.logged_steps() if row["step"] <= after_step]
            write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows))

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Writes a checkpoint as `Checkpoints.save` does, after the rows of its epochs are on disk."""
        self._sync_metrics()
        super().save(*args, **kwargs)

    def save_final(self, *args: Any, **kwargs: Any) -> None:
        """Writes the last checkpoints as `Checkpoints.save_final` does, after the rows of all epochs are on disk."""
        self._sync_metrics()
        super().save_final(*args, **kwargs)

    def wait(self) -> None:
        """Waits until everything that was saved is on disk.

        Raises:
          UserError: It could not be written.
        """
        super().wait()
        self.note_saved()

    def _sync_metrics(self) -> None:
        for path in (self.path / STEPS, self.path / METRICS):
            if path.exists():
                with disk_errors(path):
                    sync(path)
                    sync(path.parent)

    def metrics(self) -> list[dict]:
        """Returns the rows of metrics.jsonl, without an incomplete last line of a killed process.

        Raises:
          UserError: A line is damaged.
        """
        return _rows(self.path / METRICS, "epoch")

    def cut_metrics(self, after_epoch: int, needed: Sequence[int] = ()) -> None:
        """Deletes the rows of later epochs and an incomplete last line, before a run is resumed from a checkpoint.

        Rows that are missing, doubled or out of order are told in a warning; the rows that are left are put in order.

        Args:
          after_epoch: Last epoch to keep, compared with the field 'epoch' of the rows.
          needed: Epochs whose scores will be a part of the result.

        Raises:
          UserError: The row of a needed epoch is missing.
        """
        path = self.path / METRICS
        rows = [row for row in self.metrics() if row["epoch"] <= after_epoch]
        epochs = [row["epoch"] for row in rows]
        by_epoch = {row["epoch"]: row for row in rows}
        missing = sorted({*range(1, after_epoch + 1)} - set(epochs))
        if lost := sorted({*needed} & {*missing}):
            raise UserError(
                f"{path} lacks the row of epoch {lost[0]}, which has scores of the result; put it back, or train anew "
                f"under another --run (or delete {self.path})."
            )
        faults = _faults(epochs, missing)
        if faults:
            logging.warning("%s %s; the run goes on with the rows that are left.", path, " and ".join(faults))
        if path.exists():
            write_atomic(path, "".join(json.dumps(by_epoch[epoch]) + "\n" for epoch in sorted(by_epoch)))

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Locks the run for this process; the operating system releases the lock when the process ends in any way.

        Raises:
          UserError: The run is locked already: by another process, by this one, or on another machine.
        """
        with locked(self.path, self.name):
            remove_leftovers(self.path)
            remove_leftovers(self.path / CHECKPOINTS)
            yield

    @property
    def is_locked(self) -> bool:
        """Whether a process is training the run, on this machine or on another one."""
        return is_locked(self.path)


def check_manifest(manifest: Mapping[str, Any], path: pathlib.Path) -> None:
    """Refuses a manifest of another format, or whose entries have other types than kdjax writes.

    Raises:
      UserError: Names the entry.
    """
    number = manifest.get("format")
    if number not in READABLE or isinstance(number, bool):
        newer = isinstance(number, int) and number > FORMAT
        by = manifest.get("versions", {})
        writer = f"kdjax {by['kdjax']}" if isinstance(by, Mapping) and "kdjax" in by else "the version of kdjax"
        raise UserError(
            f"{path} has format {number!r}{', which a newer kdjax wrote,' if newer else ''} and this kdjax reads "
            f"{' and '.join(map(str, READABLE))}; use {writer} that wrote it, or choose another --run."
        )
    wanted = {"config": Mapping, "hashes": Mapping, "splits": Mapping, "versions": Mapping, "teachers": Mapping}
    _check_types(manifest, wanted | {"model": Mapping, "command": str, "loss_space": str}, path)
    _check_types(manifest.get("model", {}), {"name": str, "args": Mapping, "num_classes": int}, path, "model.")
    for name, split in manifest.get("splits", {}).items():
        _check_types({name: split}, {name: Mapping}, path, "splits.")
        _check_types(split, {"size": int, "sha256": str}, path, f"splits.{name}.")
    check_stored(manifest.get("config", {}), str(path))


def check_result(result: Mapping[str, Any], path: pathlib.Path) -> None:
    """Refuses a result whose entries have other types than kdjax writes; the scores are checked by `check_scores`.

    Raises:
      UserError: Names the entry.
    """
    _check_types(result, {"last": Mapping, "best": Mapping, "seconds": (int, float)}, path)
    for which in ("last", "best"):
        _check_types(result.get(which, {}), {"epoch": int, "step": int}, path, f"{which}.")


def check_scores(result: Mapping[str, Any], path: pathlib.Path) -> None:
    """Refuses a result whose scores are not numbers.

    Raises:
      UserError: Names the score.
    """
    for which, split in itertools.product(("last", "best"), ("train", "validation", "test")):
        scores = result.get(which, {})
        _check_types(scores, {split: Mapping}, path, f"{which}.")
        numbers: dict[str, Any] = dict.fromkeys(SCORES, (int, float, type(None)))
        _check_types(scores.get(split, {}), numbers, path, f"{which}.{split}.")


def _check_types(found: Mapping[str, Any], wanted: Mapping[str, Any], path: pathlib.Path, where: str = "") -> None:
    for name, kind in wanted.items():
        if name in found and (not isinstance(found[name], kind) or isinstance(found[name], bool)):
            text = repr(found[name])
            shown = text if len(text) <= 60 else text[:57] + "..."
            raise UserError(
                f"{path} is damaged: '{where}{name}' is {shown}, which kdjax never writes; repair it, or delete its "
                "folder and train the run again."
            )


def _rows(path: pathlib.Path, key: str) -> list[dict]:
    """Returns the rows of a file of lines; each is numbered by an integer under `key`."""
    with disk_errors(path, "read"):
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else [""]
    rows = []
    for number, line in enumerate(lines[:-1], 1):  # after the last newline there is nothing or an incomplete line
        try:
            rows.append(_row(line, key))
        except (TypeError, ValueError, RecursionError) as error:
            # A power cut can leave the last line half-written, but not as JSON that says something else.
            if number < len(lines) - 1 or isinstance(error, TypeError):
                raise UserError(f"{path}:{number} is damaged; delete that line.") from error
    return rows


def _row(line: str, key: str) -> dict:
    row = json.loads(line)
    number = row.get(key) if isinstance(row, dict) else None
    if not isinstance(number, int) or isinstance(number, bool):
        raise TypeError(f"not a row with a number under '{key}'")
    return row


def _faults(epochs: Sequence[int], missing: Sequence[int]) -> list[str]:
    """Returns in words what is wrong with the epochs of metrics.jsonl."""
    doubled = sorted({epoch for epoch in epochs if epochs.count(epoch) > 1}) if len(set(epochs)) < len(epochs) else []
    faults = []
    if missing:
        faults.append(f"lacks the rows of {_epochs(missing)}")
    if doubled:
        faults.append(f"has {_epochs(doubled)} more than once (the last row of each counts)")
    if list(epochs) != sorted(epochs):
        faults.append("has rows out of order")
    return faults


def _epochs(epochs: Sequence[int]) -> str:
    shown = ", ".join(map(str, epochs[:5])) + (f" and {len(epochs) - 5} more" if len(epochs) > 5 else "")
    return f"epoch {shown}" if len(epochs) == 1 else f"epochs {shown}"


@functools.lru_cache(maxsize=256)  # once for each run and process
def _warn_of_missing_hashes(name: str) -> None:
    logging.warning(
        "run '%s' was made by a kdjax that kept no hashes: it cannot be told whether its data, teachers and code are "
        "still the same.",
        name,
    )

"""One run: its manifest, metrics, result, lock and checkpoints."""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from absl import logging

from kdjax.config import differences, with_defaults
from kdjax.errors import UserError
from kdjax.store.checkpoints import Checkpoints
from kdjax.store.files import disk_errors, plain, read_json, write_atomic, write_json

FORMAT = 1  # of a run's folder; raise it when an older kdjax could no longer read what is written
MANIFEST = "manifest.json"
METRICS = "metrics.jsonl"
RESULT = "result.json"
LOCK = "lock"
CHECKPOINTS = "checkpoints"

_NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class Run(Checkpoints):
    """A run's folder; comes from `Store.run` or `Store.find`.

    Attributes:
      name: its path in the store, with '/'.
      path: its folder.
    """

    def __init__(self, name: str, path: pathlib.Path):
        super().__init__(path / CHECKPOINTS, owner=name)
        self.name = name
        self.path = path

    @property
    def manifest(self) -> dict | None:
        """What the run is: format, resolved config, versions, ...; None before it began.

        Raises:
          UserError: it is damaged, or of a format that this kdjax does not know.
        """
        manifest = read_json(self.path / MANIFEST)
        if manifest is not None and manifest.get("format") != FORMAT:
            raise UserError(
                f"{self.path / MANIFEST} has format {manifest.get('format')!r} and this kdjax reads {FORMAT}; "
                "use the kdjax that wrote it, or choose another --run."
            )
        return manifest

    @property
    def result(self) -> dict | None:
        """What came out; None until the run is finished."""
        return read_json(self.path / RESULT)

    def begin(self, manifest: Mapping) -> None:
        """Writes the manifest of a new run, or checks that an existing one is the same experiment.

        Args:
          manifest: JSON-able, with the resolved `config` as a plain mapping; `format` is added here.

        Raises:
          UserError: the run exists with another config (names the fields), or the disk refuses.
        """
        manifest = plain({"format": FORMAT, **manifest})
        old = self.manifest
        if old is None:
            write_json(self.path / MANIFEST, manifest)
            return
        # Both filled: a run of an older kdjax lacks the fields that have come since.
        before, now = (plain(with_defaults(config)) for config in (old.get("config", {}), manifest["config"]))
        changed = differences(before, now)
        if changed:
            raise UserError(
                f"Run '{self.name}' exists with another config ({'; '.join(changed)}); restore the fields, "
                f"choose another --run or --store, or delete {self.path}."
            )

    def discard_if_empty(self) -> None:
        """Takes back the beginning of a run that came to nothing: one with a step or an epoch to its name is kept."""
        if not self.steps() and not self.metrics():
            (self.path / MANIFEST).unlink(missing_ok=True)

    def write_result(self, result: Mapping) -> None:
        """Writes result.json atomically; its presence says that the run is finished."""
        write_json(self.path / RESULT, result)

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Adds one line to metrics.jsonl; what is not finite is written as null."""
        path = self.path / METRICS
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(plain(row), allow_nan=False) + "\n")

    def metrics(self) -> list[dict]:
        """Returns the rows of metrics.jsonl, without a last line that a kill left torn."""
        path = self.path / METRICS
        with disk_errors(path, "read"):
            lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else [""]
        rows = []
        for number, line in enumerate(lines[:-1], 1):  # what follows the last newline is nothing, or torn
            try:
                rows.append(dict(json.loads(line)))
            except (TypeError, ValueError) as error:
                if number < len(lines) - 1:
                    raise UserError(f"{path}:{number} is damaged; delete that line.") from error
        return rows

    def cut_metrics(self, after_epoch: int) -> None:
        """Drops the rows of epochs after `after_epoch` and a torn last line: call it before going on from a checkpoint.

        Args:
          after_epoch: the last epoch to keep; rows are told by their field 'epoch'.
        """
        path = self.path / METRICS
        if path.exists():
            rows = [row for row in self.metrics() if row["epoch"] <= after_epoch]
            write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows))

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the run for this process; the system lets go of it when the process ends, however it ends.

        Raises:
          UserError: another process (or this one, elsewhere) holds it.
        """
        path = self.path / LOCK
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open(path, "a+", encoding="utf-8")
        with file:
            with disk_errors(path):
                self._take(file)
            yield

    def _take(self, file) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "pid unknown"
            raise UserError(
                f"Run '{self.name}' is locked, another process is training it ({holder}); "
                "wait for it, stop it, or choose another --run."
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS_HERE:
                raise
            logging.warning("%s: this file system has no locks; take care that one process trains the run.", self.path)
        file.truncate(0)
        file.write(f"pid {os.getpid()} on {os.uname().nodename}")
        file.flush()

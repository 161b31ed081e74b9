"""One run: its manifest, metrics, result, lock and checkpoints."""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import IO, Any

from absl import logging

from kdjax.config import differences, with_defaults
from kdjax.errors import UserError
from kdjax.store.checkpoints import Checkpoints
from kdjax.store.files import disk_errors, plain, read_json, write_atomic, write_json

FORMAT = 2  # number of the format of a run's folder; increase it if older versions of kdjax cannot read the new one
READABLE = (1, 2)  # runs of format 1 have no packed checkpoints
MANIFEST = "manifest.json"
METRICS = "metrics.jsonl"
RESULT = "result.json"
LOCK = "lock"
CHECKPOINTS = "checkpoints"

_NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class Run(Checkpoints):
    """The folder of a run; made by `Store.run` and `Store.find`.

    Attributes:
      name: Name of the run: the path of its folder in the store, with '/'.
      path: Path of its folder.
    """

    def __init__(self, name: str, path: pathlib.Path):
        super().__init__(path / CHECKPOINTS, owner=name)
        self.name = name
        self.path = path

    @property
    def manifest(self) -> dict | None:
        """The manifest: format, resolved config, versions and so on; None before the run began.

        Raises:
          UserError: The manifest is damaged, or has a format that this version of kdjax cannot read.
        """
        manifest = read_json(self.path / MANIFEST)
        if manifest is not None and manifest.get("format") not in READABLE:
            raise UserError(
                f"{self.path / MANIFEST} has format {manifest.get('format')!r} and this kdjax reads "
                f"{' and '.join(map(str, READABLE))}; use the version of kdjax that wrote it, or choose another --run."
            )
        return manifest

    @property
    def result(self) -> dict | None:
        """The result; None until the run is finished."""
        return read_json(self.path / RESULT)

    def begin(self, manifest: Mapping) -> None:
        """Writes the manifest of a new run, or checks that an existing run has the same config.

        Args:
          manifest: Mapping that JSON can represent, with the resolved config as 'config'; 'format' is added here.

        Raises:
          UserError: The run exists with another config (the message has the fields), or the disk cannot be written.
        """
        manifest = plain({"format": FORMAT, **manifest})
        old = self.manifest
        if old is None:
            write_json(self.path / MANIFEST, manifest)
            return
        # Both with defaults, since a run of an older version of kdjax lacks the fields that were added later.
        before, now = (plain(with_defaults(config)) for config in (old.get("config", {}), manifest["config"]))
        changed = differences(before, now)
        if changed:
            raise UserError(
                f"Run '{self.name}' exists with another config ({'; '.join(changed)}); restore these fields, "
                f"choose another --run or --store, or delete {self.path}."
            )

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
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(plain(row), allow_nan=False) + "\n")

    def metrics(self) -> list[dict]:
        """Returns the rows of metrics.jsonl, without an incomplete last line of a killed process."""
        path = self.path / METRICS
        with disk_errors(path, "read"):
            lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else [""]
        rows = []
        for number, line in enumerate(lines[:-1], 1):  # after the last newline there is nothing or an incomplete line
            try:
                rows.append(dict(json.loads(line)))
            except (TypeError, ValueError) as error:
                if number < len(lines) - 1:
                    raise UserError(f"{path}:{number} is damaged; delete that line.") from error
        return rows

    def cut_metrics(self, after_epoch: int) -> None:
        """Deletes the rows of later epochs and an incomplete last line, before a run is resumed from a checkpoint.

        Args:
          after_epoch: Last epoch to keep, compared with the field 'epoch' of the rows.
        """
        path = self.path / METRICS
        if path.exists():
            rows = [row for row in self.metrics() if row["epoch"] <= after_epoch]
            write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows))

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Locks the run for this process; the operating system releases the lock when the process ends in any way.

        Raises:
          UserError: The run is locked already, by another process or by this one.
        """
        path = self.path / LOCK
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open(path, "a+", encoding="utf-8")
        with file:
            with disk_errors(path):
                self._take(file)
            yield

    def _take(self, file: IO[str]) -> None:
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
            line = "%s: this file system has no locks; make sure that only one process trains the run."
            logging.warning(line, self.path)
        file.truncate(0)
        file.write(f"pid {os.getpid()} on {os.uname().nodename}")
        file.flush()

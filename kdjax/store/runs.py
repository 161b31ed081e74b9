"""A folder of runs. The name of a run is the path of its folder in the store."""

import os
import pathlib
import re
from collections.abc import Iterable

from kdjax.errors import UserError, nearest
from kdjax.own_code import Trust
from kdjax.store.files import disk_errors, write_atomic
from kdjax.store.run import MANIFEST, Run

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # pathlib would take it for a folder of this host, 'gs:/bucket'
PART = re.compile(r"[A-Za-z0-9_+=-][A-Za-z0-9._+=-]*")  # no leading dot, which '..' and hidden folders have
LONGEST_PART = 240  # characters of a name, which are single bytes; file systems allow 255


class Store:
    """Runs by name in one folder.

    Args:
      root: Path of the folder; it is made when the first run begins.
      trust: Packages, modules and 'package.module:attribute' that are imported if a manifest in the store names them.
        Besides these, only what a config of the user's names in this process is imported.

    Raises:
      UserError: The root is a URL.
    """

    def __init__(self, root: os.PathLike | str, trust: Iterable[str] = ()):
        if URL.match(os.fspath(root)):
            raise UserError(
                f"the store '{os.fspath(root)}' is a URL, and kdjax keeps runs in folders only; mount the bucket on "
                "every host, and name the folder where it is mounted as --store."
            )
        self.root = pathlib.Path(root)
        self.trust = Trust(frozenset([trust] if isinstance(trust, str) else trust))

    def run(self, name: str) -> Run:
        """Returns the run of that name, which does not have to exist yet.

        Args:
          name: Parts joined by '/', each of letters, digits and . _ + = -, without a leading dot.

        Raises:
          UserError: The name is malformed, or its folder would be inside another run or would contain other runs.
        """
        self._check_name(name)
        path = self.root / name
        for parent in path.relative_to(self.root).parents:
            if parent != pathlib.Path(".") and (self.root / parent / MANIFEST).is_file():
                raise UserError(f"Run '{name}' would be inside the run '{parent}'; choose another --run.")
        inside = [] if (path / MANIFEST).is_file() else self._walk(path)
        if inside:
            raise UserError(f"Run '{name}' would contain the run '{inside[0]}'; choose another --run.")
        return Run(name, path, self.trust)

    def write_text(self, name: str, text: str) -> pathlib.Path:
        """Writes a text file into the store, beside the runs, and returns its path."""
        path = self.root / name
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text)
        return path

    def runs(self) -> list[str]:
        """Returns the names of all runs that have a manifest, sorted."""
        return self._walk(self.root)

    def find(self, name: str) -> Run:
        """Returns an existing run.

        Raises:
          UserError: There is no such run; the message has the most similar name.
        """
        self._check_name(name)
        if not (self.root / name / MANIFEST).is_file():
            names = self.runs()
            hint = nearest(name, names) if names else " It has no runs yet."
            hint = hint if len(hint) < 200 else f" It has {len(names)} runs."
            raise UserError(f"The store {self.root} has no run '{name}'.{hint}")
        return Run(name, self.root / name, self.trust)

    def _check_name(self, name: str) -> None:
        if not isinstance(name, str) or not all(PART.fullmatch(part) for part in name.split("/")):
            raise UserError(
                f"'{name}' is not a valid name of a run; use parts joined by '/', each of letters, digits and "
                ". _ + = -, without a leading dot, such as digits/mlp-mse-s0."
            )
        if len(longest := max(name.split("/"), key=len)) > LONGEST_PART:
            raise UserError(
                f"the name of a run has a part of {len(longest)} characters, {longest[:20]}..., and a folder's name "
                f"has at most {LONGEST_PART}; choose a shorter one with --run (name= in Python)."
            )

    def _walk(self, top: pathlib.Path) -> list[str]:
        found = []
        with disk_errors(top, "read"):
            for folder, folders, files in os.walk(top):
                if MANIFEST in files and pathlib.Path(folder) != self.root:
                    found.append(pathlib.Path(folder).relative_to(self.root).as_posix())
                    folders.clear()  # there are no runs inside a run
                folders[:] = [name for name in folders if not name.startswith(".")]
        return sorted(found)

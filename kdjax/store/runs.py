"""The store: a folder of runs, named by their paths in it."""

import os
import pathlib
import re

from kdjax.errors import UserError, nearest
from kdjax.store.files import disk_errors, write_atomic
from kdjax.store.run import MANIFEST, Run

PART = re.compile(r"[A-Za-z0-9_+=-][A-Za-z0-9._+=-]*")  # no leading dot: neither '..' nor a hidden folder


class Store:
    """Runs by name under one folder.

    Args:
      root: the folder; it is made when the first run begins.
    """

    def __init__(self, root: os.PathLike | str):
        self.root = pathlib.Path(root)

    def run(self, name: str) -> Run:
        """Returns the run of that name, which need not exist yet.

        Args:
          name: parts joined by '/', each of letters, digits and . _ + = -, without a leading dot.

        Raises:
          UserError: the name is malformed, lies inside another run, or holds other runs.
        """
        self._check_name(name)
        path = self.root / name
        for parent in path.relative_to(self.root).parents:
            if parent != pathlib.Path(".") and (self.root / parent / MANIFEST).is_file():
                raise UserError(f"Run '{name}' would lie inside the run '{parent}'; choose another --run.")
        inside = [] if (path / MANIFEST).is_file() else self._walk(path)
        if inside:
            raise UserError(f"Run '{name}' would hold the run '{inside[0]}'; choose another --run.")
        return Run(name, path)

    def write_text(self, name: str, text: str) -> pathlib.Path:
        """Writes a file of the store's own beside the runs, atomically, and returns where it is."""
        path = self.root / name
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text)
        return path

    def runs(self) -> list[str]:
        """Returns the names of all runs that have a manifest, sorted."""
        return self._walk(self.root)

    def find(self, name: str) -> Run:
        """Returns a run that exists.

        Raises:
          UserError: there is no such run; gives the nearest name there is.
        """
        self._check_name(name)
        if not (self.root / name / MANIFEST).is_file():
            names = self.runs()
            hint = nearest(name, names) if names else " It holds no runs yet."
            hint = hint if len(hint) < 200 else f" It holds {len(names)} runs."
            raise UserError(f"The store {self.root} has no run '{name}'.{hint}")
        return Run(name, self.root / name)

    def _check_name(self, name: str) -> None:
        if not all(PART.fullmatch(part) for part in name.split("/")):
            raise UserError(
                f"'{name}' is no name for a run; use parts joined by '/', each of letters, digits and . _ + = -, "
                "without a leading dot: digits/mlp-mse-s0."
            )

    def _walk(self, top: pathlib.Path) -> list[str]:
        found = []
        with disk_errors(top, "read"):
            for folder, folders, files in os.walk(top):
                if MANIFEST in files and pathlib.Path(folder) != self.root:
                    found.append(pathlib.Path(folder).relative_to(self.root).as_posix())
                    folders.clear()  # runs do not nest
                folders[:] = [name for name in folders if not name.startswith(".")]
        return sorted(found)

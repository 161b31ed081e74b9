"""Copies a study's results from the store into the project, and writes its tables in the README from them."""

import pathlib
from typing import Any

from kdjax.errors import UserError
from kdjax.reporting.figures import Figure, write
from kdjax.store import Store
from kdjax.store.files import write_atomic
from kdjax.studies.fields import RunConfig
from kdjax.studies.kinds import read_study


def publish(config: RunConfig, store: Store) -> str:
    """Publishes the results of a study and returns what to print.

    Args:
      config: Config of a study that has a file of results.
      store: Store in which it ran; without one, the tables are written from the project's file alone.

    Raises:
      UserError: The study keeps no results as data, no run of it is finished, or the README has no place for it.
    """
    study: Any = read_study(config)
    if not getattr(study, "results", ""):
        raise UserError("this study keeps no results as data: its config has no field 'results'.")
    path = pathlib.Path(study.results)
    results = study.stored(store.root / "results.json", path)
    if not results.rows:
        raise UserError(f"neither {store.root} nor {path} has results of this study; run it first.")
    readme = readme_of(path)
    text = with_part(readme.read_text(encoding="utf-8"), path.stem, part(study, results, path, readme))
    write_atomic(path, study.dumps(results), "--config")
    write(study.figures(results), path.with_suffix(""), "--config")
    write_atomic(readme, text, "--config")
    return f"{path} has {len(results.rows)} rows, and {readme} the tables that they give."


def readme_of(path: pathlib.Path) -> pathlib.Path:
    """Returns the nearest README above a file of results that has a place for it; else the nearest of all.

    Args:
      path: The file of results.
    """
    above = [folder / "README.md" for folder in path.parents if (folder / "README.md").is_file()]
    with_place = [readme for readme in above if _begin(path.stem) in readme.read_text(encoding="utf-8")]
    return [*with_place, *above, path.parent.parent / "README.md"][0]


def part(study: Any, results: Any, path: pathlib.Path, readme: pathlib.Path) -> str:
    """Returns what a README says of a study, from its results alone: the first figure, the tables, other figures.

    Args:
      study: The study.
      results: Its results.
      path: The file of results; the folder of its figures stands beside it.
      readme: The README, to which the figures' addresses are relative.
    """
    figures: list[Figure] = study.figures(results)
    folder = path.with_suffix("").relative_to(readme.parent).as_posix()
    shown = [f"![{figure.title}]({folder}/{figure.name}.svg)\n\n{figure.caption}" for figure in figures]
    return "\n\n".join([*shown[:1], study.tables(results).strip(), *shown[1:]])


def _begin(name: str) -> str:
    return f"<!-- results of {name} -->"


def with_part(text: str, name: str, new: str) -> str:
    """Returns a README with another text between the two comments that mark the place of a study.

    Raises:
      UserError: The comments are missing.
    """
    begin, end = _begin(name), f"<!-- end of {name} -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise UserError(f"the README has no place for these results; write '{begin}' and '{end}' where they belong.")
    return f"{before}{begin}\n\n{new}\n\n{end}{after}"

"""The kinds of studies, and what runs one: reads its fields, trains its runs, writes its report.

A study is one file with one frozen dataclass, which holds in this order its fields with their defaults, `run`, `report`
and `figures`. Name it in KINDS, or in a config of your own by `study.kind = "package.module:YourStudy"`.
"""

import dataclasses
from typing import Protocol, TypeVar, cast

from kdjax import own_code
from kdjax.errors import UserError, lookup
from kdjax.reporting.figures import Figure, write
from kdjax.store import Store
from kdjax.studies.fields import RunConfig, read_fields
from kdjax.studies.runner import Runner
from kdjax.training import processes

Outcome = TypeVar("Outcome")

# What study.kind may say -> the study's class, imported when it is named.
KINDS = {
    "cross": "kdjax.studies.cross:CrossStudy",
    "human": "kdjax.studies.human:HumanStudy",
    "posterior": "kdjax.studies.posterior:PosteriorStudy",
    "noise": "kdjax.studies.noise:NoiseStudy",
    "attention_fidelity": "kdjax.studies.attention_fidelity:AttentionStudy",
    "renyi": "kdjax.studies.renyi:RenyiStudy",
    "generations": "kdjax.studies.generations:GenerationsStudy",
    "which_teacher": "kdjax.studies.which_teacher:WhichTeacherStudy",
}


class Study(Protocol[Outcome]):
    """What a study's class has besides its fields."""

    def run(self, runner: Runner) -> Outcome:
        """Trains the study's runs and returns what it found."""
        ...

    def report(self, outcome: Outcome) -> str:
        """Returns the study's tables in Markdown."""
        ...

    def figures(self, outcome: Outcome) -> list[Figure]:
        """Returns the study's figures, which may be none."""
        ...


def run_study(config: RunConfig, runner: Runner) -> str:
    """Runs the study of a config and returns what to print.

    Args:
      config: Fields of the study; `kind` is a name of KINDS or 'package.module:attribute', by default 'cross'.
      runner: Runner of its runs; the report goes to its store.

    Raises:
      UserError: A mistake in the study, its runs or its data.
    """
    study = read_study(config)
    own_code.note_named(config.to_dict())
    return write_report(study, study.run(runner), runner.store)


def read_study(config: RunConfig) -> Study:
    """Returns the study of a config.

    Args:
      config: See `run_study`.

    Raises:
      UserError: An unknown kind, unknown or missing fields, or fields of a wrong type or value.
    """
    kind = config.get("kind", "cross")
    found = lookup(KINDS, kind, "study.kind")
    schema = lookup(KINDS, found, "study.kind") if isinstance(found, str) else found
    methods = [getattr(schema, name, None) for name in ("run", "report", "figures")]
    if not isinstance(schema, type) or not dataclasses.is_dataclass(schema) or not all(map(callable, methods)):
        raise UserError(f"study.kind '{kind}' must name a dataclass with the methods run, report and figures.")
    return read_fields(cast(type[Study], schema), {name: value for name, value in config.items() if name != "kind"})


def write_report(study: Study[Outcome], outcome: Outcome, store: Store) -> str:
    """Writes a study's tables and figures to `report.md` in the store and returns what to print.

    Args:
      study: The study.
      outcome: What its `run` returned.
      store: Store of its runs.
    """
    tables, drawn = study.report(outcome), study.figures(outcome)
    shown = processes.by_writer(lambda: write(drawn, store.root / "figures"))
    path = store.write_text("report.md", f"{tables}\n{shown}\n" if shown else tables)
    figures = {0: "", 1: ", with a figure"}.get(len(drawn), f", with {len(drawn)} figures")
    return f"\n{tables}\nThis is in {path}{figures}."

"""Trains all runs of a study and prints its table: python -m kdjax.run_study --config=configs/studies/quickstart.py"""

import importlib

from kdjax import cli
from kdjax.errors import UserError, nearest

cli.define_common_flags()
cli.define_config_flag()

# What study.kind may say -> what runs it, `run(study, store, data_dir, counter)`, and what tells of what that returned,
# `report(study, outcome)` and, where there are any, `figures(study, outcome)`.
KINDS = {
    "cross": ("kdjax.studies.cross", "kdjax.reporting.contrasts"),
    "human": ("kdjax.studies.human", "kdjax.reporting.human"),
    "posterior": ("kdjax.studies.posterior", "kdjax.reporting.posterior"),
    "noise": ("kdjax.studies.noise", "kdjax.reporting.noise"),
    "attention_fidelity": ("kdjax.studies.attention_fidelity", "kdjax.reporting.attention_fidelity"),
    "renyi": ("kdjax.studies.renyi", "kdjax.reporting.renyi"),
}


def main() -> None:
    """Runs the study that the flags name; tables and figures are in <store>/report.md."""
    from kdjax.reporting.figures import write_report
    from kdjax.store import Store

    study, store = cli.FLAGS.config, Store(cli.FLAGS.store)
    kind = study.get("kind", "cross")
    if kind not in KINDS:
        raise UserError(f"study.kind '{kind}' is none.{nearest(kind, KINDS)}")
    study_module, reporting_module = (importlib.import_module(name) for name in KINDS[kind])
    outcome = study_module.run(study, store, cli.FLAGS.data_dir, cli.job_counter)
    print(write_report(reporting_module, study, outcome, store))


if __name__ == "__main__":
    cli.run(main)

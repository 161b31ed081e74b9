"""Trains generations of teachers: python -m kdjax.train_generations --config=configs/tolerant_generations.py"""

from kdjax import cli

cli.define_common_flags()
cli.define_config_flag()


def main() -> None:
    """Goes on with the generations that the flags name, to the end; tables and figure are in <store>/report.md."""
    from kdjax.reporting import generations
    from kdjax.reporting.figures import write_report
    from kdjax.store import Store
    from kdjax.studies.generations import run

    study, store = cli.FLAGS.config, Store(cli.FLAGS.store)
    outcome = run(study, store, cli.FLAGS.data_dir, cli.job_counter)
    print(write_report(generations, study, outcome, store))


if __name__ == "__main__":
    cli.run(main)

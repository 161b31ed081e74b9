"""Trains generations of teachers: python -m kdjax.train_generations --config=configs/tolerant_generations.py"""

from kdjax import cli

cli.define_common_flags()
cli.define_config_flag()


def main() -> None:
    """Goes on with the generations that the flags name, to the end; the tables are also in <store>/report.md."""
    from kdjax.reporting.generations import report
    from kdjax.store import Store
    from kdjax.studies.generations import run

    study, store = cli.FLAGS.config, Store(cli.FLAGS.store)
    text = report(study, run(study, store, cli.FLAGS.data_dir, cli.job_counter))
    print(f"\n{text}\nThis is in {store.write_text('report.md', text)}.")


if __name__ == "__main__":
    cli.run(main)

"""Writes a study's tables from its results: python -m kdjax.publish --config=configs/studies/which_teacher.py:digits"""

from kdjax import cli

cli.define_common_flags()
cli.define_config_flag()


def main() -> None:
    """Copies the results of a study from the store into the project, and writes the README's tables from them."""
    from kdjax.store import Store
    from kdjax.studies.publish import publish

    print(publish(cli.FLAGS.config, Store(cli.FLAGS.store)))


if __name__ == "__main__":
    cli.run(main)

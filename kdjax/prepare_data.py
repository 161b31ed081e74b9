"""Downloads or converts a data set if it is missing: python -m kdjax.prepare_data cifar100 --data_dir=data"""

from kdjax import cli

cli.define_common_flags()


def main(name: str = "") -> None:
    """Writes the data set to --data_dir, or prints that it is there already.

    Args:
      name: Name of the data set; without one, an error lists the names.
    """
    from kdjax.data.prepare import prepare

    prepare(name, cli.FLAGS.data_dir)


if __name__ == "__main__":
    cli.run(main, takes="[NAME]")

"""Downloads or converts a data set, once: python -m kdjax.prepare_data cifar100 --data_dir=data"""

from kdjax import cli

cli.define_common_flags()


def main(name: str) -> None:
    """Puts the data set into --data_dir, or says that it is there."""
    from kdjax.data.fetch import prepare

    prepare(name, cli.FLAGS.data_dir)


if __name__ == "__main__":
    cli.run(main, takes="NAME")

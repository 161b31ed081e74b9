"""Evaluates a finished or stopped run on every split: python -m kdjax.evaluate --run=digits/mlp-mse-s0"""

from absl import flags

from kdjax import cli
from kdjax.errors import UserError

cli.define_common_flags()
cli.define(flags.DEFINE_string, "run", "", "Name of the run.")
cli.define(flags.DEFINE_string, "checkpoint", "last", "Checkpoint of the run: 'last', 'best' or a step.")


def main() -> None:
    """Prints the loss, top-1 and top-5 accuracy of the run that the flags name."""
    if not cli.FLAGS.run:
        raise UserError("--run is missing; name a run of the store, such as --run=digits/mlp-mse-s0.")
    from kdjax.inspection.predict import score_run
    from kdjax.reporting.tables import score_table
    from kdjax.store import Store

    print(score_table(score_run(Store(cli.FLAGS.store), cli.FLAGS.run, cli.FLAGS.checkpoint, cli.FLAGS.data_dir)))


if __name__ == "__main__":
    cli.run(main)

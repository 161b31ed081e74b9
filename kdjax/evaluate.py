"""Evaluates a finished or stopped run on every split: python -m kdjax.evaluate --run=digits/mlp-mse-s0"""

from absl import flags

from kdjax import cli
from kdjax.errors import UserError

cli.define_common_flags()
cli.define_trust_flag()
cli.define_process_flags()
cli.define(flags.DEFINE_string, "run", "", "Name of the run.")
cli.define(flags.DEFINE_string, "checkpoint", "last", "Checkpoint of the run: 'last', 'best' or a step.")


def main() -> None:
    """Prints the loss, top-1 and top-5 accuracy of the run that the flags name."""
    if not cli.FLAGS.run:
        raise UserError("--run is missing; name a run of the store, such as --run=digits/mlp-mse-s0.")
    from kdjax.inspection.predict import score_run
    from kdjax.reporting.tables import score_table
    from kdjax.store import Store

    flag = cli.FLAGS
    scores = score_run(Store(flag.store, flag.trust), flag.run, flag.checkpoint, flag.data_dir)
    print(score_table(scores))


if __name__ == "__main__":
    cli.run(main)

"""Trains a teacher: python -m kdjax.train_teacher --config=configs/mse_teacher.py"""

from kdjax import cli
from kdjax.errors import UserError

cli.define_training_flags()


def main() -> None:
    """Trains the run that the flags describe."""
    if cli.FLAGS.config.get("teachers"):
        raise UserError("this config has teachers; train it with python -m kdjax.train_student.")
    cli.train_from_flags()


if __name__ == "__main__":
    cli.run(main)

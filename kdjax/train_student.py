"""Trains a student, from teachers or without any: python -m kdjax.train_student --config=configs/wttm_student.py"""

from kdjax import cli

cli.define_training_flags()

if __name__ == "__main__":
    cli.run(cli.train_from_flags)

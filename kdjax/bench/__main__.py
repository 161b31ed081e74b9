"""Prints a table of measurements.

python -m kdjax.bench step --config=configs/kd_student.py:cifar10,resnet20,resnet8 --cpu_devices=2
python -m kdjax.bench models --config=configs/ce_teacher.py:smoke --only=resnet20,vgg8
python -m kdjax.bench data --config=configs/kd_student.py:cifar10,resnet20,resnet8
python -m kdjax.bench losses --config=configs/student.py --only=kd,crd
python -m kdjax.bench losses --config=configs/student.py --only=vocabulary
python -m kdjax.bench population --config=configs/kd_student.py:cifar10,resnet20,resnet8 --members=4
python -m kdjax.bench convolutions
python -m kdjax.bench store --rounds=20
python -m kdjax.bench rival --cpu_devices=2 --only=resnet20-resnet8   # beside PyTorch
python -m kdjax.bench gpu --seconds=540   # what one command can tell about a GPU or TPU
python -m kdjax.bench compare before.json after.json   # of two tables that --json=FILE has left
"""

import importlib
import sys

from absl import flags

from kdjax import cli
from kdjax.errors import UserError, nearest

BENCHMARKS = {
    name: f"kdjax.bench.{name}"
    for name in (
        *("compare", "convolutions", "data", "gpu", "losses", "models", "population", "rival", "step", "store"),
    )
}
WITHOUT_CONFIG = ("compare", "convolutions", "gpu", "rival", "store")

cli.define_common_flags()
# An unknown benchmark is told as such, and not that it lacks a config.
if sys.argv[1:2] not in [[name] for name in WITHOUT_CONFIG] and (
    sys.argv[1:2] in [[name] for name in BENCHMARKS] or any("config" in argument for argument in sys.argv)
):
    cli.define_config_flag()
cli.define(flags.DEFINE_integer, "rounds", 5, "Number of measurements, of which the median is shown.", lower_bound=1)
cli.define(flags.DEFINE_integer, "steps", 20, "Number of train steps in one measurement.", lower_bound=1)
cli.define(flags.DEFINE_integer, "members", 4, "Number of runs that are trained together.", lower_bound=1)
cli.define(
    flags.DEFINE_list,
    "only",
    [],
    "Networks, pairs of them, methods, views or layouts to measure, separated by commas; default: all.",
)


cli.define(flags.DEFINE_float, "seconds", 540.0, "Seconds after which `gpu` begins no measurement.", lower_bound=0.0)
cli.define(flags.DEFINE_string, "json", "", "File for the tables, which `bench compare` reads.")


def main(name: str, *files: str) -> None:
    """Runs a benchmark and prints its table, or compares the tables of two files.

    Args:
      name: Key of BENCHMARKS.
      *files: The two files, for 'compare' alone.
    """
    if name not in BENCHMARKS:
        raise UserError(f"unknown benchmark '{name}'.{nearest(name, BENCHMARKS)}")
    importlib.import_module(BENCHMARKS[name]).show(*(files or [cli.FLAGS]))


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.argv.insert(1, "step")
    cli.run(main, takes="compare A.json B.json" if sys.argv[1] == "compare" else "|".join(BENCHMARKS))

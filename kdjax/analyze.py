"""Analyzes runs of a store: python -m kdjax.analyze --runs=digits/mlp-ce-s0,digits/mlp-mse-s0 --what=fidelity"""

import pathlib

from absl import flags

from kdjax import cli
from kdjax.errors import UserError

cli.define_common_flags()
cli.define_trust_flag()
cli.define_process_flags()
cli.define(flags.DEFINE_list, "runs", [], "Names of the runs, separated by commas.")
KINDS = "Analyses, separated by commas: posterior, fidelity, attention, calibration, affinity."
cli.define(flags.DEFINE_list, "what", ["fidelity", "calibration"], KINDS)
cli.define(flags.DEFINE_string, "split", "test", "Split of the data: 'train', 'validation' or 'test'.")
cli.define(flags.DEFINE_string, "checkpoint", "last", "Checkpoint of the runs: 'last', 'best' or a step.")
cli.define(flags.DEFINE_string, "out", "", "JSON file to write all values to.")


def main() -> None:
    """Prints a table for each analysis of the runs that the flags name."""
    flag = cli.FLAGS
    if not flag.runs:
        raise UserError("--runs is missing; name runs of the store, such as --runs=digits/mlp-ce-s0,digits/mlp-mse-s0.")
    from kdjax.inspection.analyze import analyze
    from kdjax.reporting.analysis import report
    from kdjax.store import Store
    from kdjax.store.files import write_json
    from kdjax.training.processes import by_writer

    options = {"split": flag.split, "checkpoint": flag.checkpoint, "data_dir": flag.data_dir}
    found = analyze(Store(flag.store, flag.trust), flag.runs, flag.what, **options)
    print(report(found))
    if flag.out:
        by_writer(lambda: write_json(pathlib.Path(flag.out), found, "--out"))


if __name__ == "__main__":
    cli.run(main)

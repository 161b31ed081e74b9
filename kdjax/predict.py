"""Writes a run's outputs to a file, a teacher: python -m kdjax.predict --run=digits/mlp-mse-s0 --out=a.npy"""

from absl import flags

from kdjax import cli
from kdjax.errors import UserError

cli.define_common_flags()
cli.define_trust_flag()
cli.define(flags.DEFINE_string, "run", "", "Name of the run.")
cli.define(flags.DEFINE_string, "checkpoint", "last", "Checkpoint of the run: 'last', 'best' or a step.")
cli.define(flags.DEFINE_string, "out", "", "File to write: .npy of logits, or with --top_k .npz of the top classes.")
cli.define(
    flags.DEFINE_string, "split", "train", "'train', 'validation', 'test', or 'all' for all rows in their order."
)
cli.define(flags.DEFINE_integer, "top_k", 0, "Keep the most probable classes alone; 0 for all.", lower_bound=0)
cli.define(flags.DEFINE_enum, "dtype", "float32", ["float32", "float16"], "Type of the numbers.")
cli.define(flags.DEFINE_string, "view", "none", "View of the images, such as crop_flip, which needs --visits.")
cli.define(
    flags.DEFINE_integer, "visits", 0, "Draws of a random view for each image; epoch e sees draw e.", lower_bound=0
)
cli.define(
    flags.DEFINE_integer, "seed", 0, "Seed of the view: the order_seed, or the seed, of the student.", lower_bound=0
)


def main() -> None:
    """Writes the file that the flags describe and prints its shape."""
    flag = cli.FLAGS
    for name in ("run", "out"):
        if not flag[name].value:
            raise UserError(f"--{name} is missing, such as --run=digits/mlp-mse-s0 --out=teacher.npy.")
    from kdjax.inspection.outputs import write_outputs
    from kdjax.store import Store

    options = {name: flag[name].value for name in ("split", "checkpoint", "top_k", "dtype", "view", "visits", "seed")}
    shape = write_outputs(Store(flag.store, flag.trust), flag.run, flag.out, data_dir=flag.data_dir, **options)
    print(
        f"{flag.out}: {' x '.join(map(str, shape))}; use it as a teacher with --config.teachers.NAME.logits={flag.out}"
    )


if __name__ == "__main__":
    cli.run(main)

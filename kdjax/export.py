"""Writes a run's weights, or the run as a program: python -m kdjax.export --run=cifar100/resnet8x4-kd-s0"""

from absl import flags

from kdjax import cli
from kdjax.errors import UserError

cli.define_common_flags()
cli.define_trust_flag()
cli.define(flags.DEFINE_string, "run", "", "Name of the run.")
cli.define(flags.DEFINE_string, "checkpoint", "last", "Checkpoint of the run: 'last', 'best' or a step.")
FORMATS = "Format of the file: of weights, or stablehlo for a program that jax.export reads."
cli.define(flags.DEFINE_enum, "format", "safetensors", ["safetensors", "npz", "pth", "stablehlo"], FORMATS)
cli.define(flags.DEFINE_string, "out", "", "File to write. The default is the run's name with '-' for '/'.")
cli.define(flags.DEFINE_string, "names", "", "Library whose names to use, such as torchvision.")


def main() -> None:
    """Writes the file that the flags describe and prints its path."""
    flag = cli.FLAGS
    if not flag.run:
        raise UserError("--run is missing; name a run of the store, such as --run=digits/mlp-mse-s0.")
    if flag.names and flag.format == "stablehlo":
        raise UserError("--names: a program has no names of weights; leave it out, or set another --format.")
    from kdjax.inspection.exchange import export_weights
    from kdjax.inspection.stablehlo import export_program
    from kdjax.store import Store

    path = flag.out or f"{flag.run.replace('/', '-')}.{flag.format}"
    if not path.endswith(f".{flag.format}"):
        raise UserError(f"--out={path} must end in .{flag.format}; or set --format.")
    store = Store(flag.store, flag.trust)
    if flag.format == "stablehlo":
        sizes = export_program(store, flag.run, path, checkpoint=flag.checkpoint, data_dir=flag.data_dir)
        print(f"{path}: logits of images [{', '.join(sizes)}] as the data set stores them")
        return
    options = {"checkpoint": flag.checkpoint, "dialect": flag.names or None, "data_dir": flag.data_dir}
    written = export_weights(store, flag.run, path, **options)
    print(f"{written.path}: {written.entries} tensors of step {written.step}")


if __name__ == "__main__":
    cli.run(main)

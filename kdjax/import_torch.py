"""Reads PyTorch weights into the store: python -m kdjax.import_torch --file=ckpt_epoch_240.pth --model=resnet32x4"""

from absl import flags

from kdjax import cli
from kdjax.errors import UserError

cli.define_common_flags()
cli.define(flags.DEFINE_string, "file", "", "A PyTorch checkpoint (.pth, .pt), .safetensors or .npz.")
cli.define(flags.DEFINE_string, "model", "", "The network, as in config.model.name.")
cli.define(flags.DEFINE_string, "run", "", "Name of the run; by default imported/MODEL-FILE.")
cli.define(flags.DEFINE_string, "args", "{}", "What the network takes, as config.model.args, in JSON.")
cli.define(flags.DEFINE_string, "data", "", "A data set that it was trained on, to evaluate it: cifar100.")


def main() -> None:
    """Writes the run that the flags name and prints where it is and how well it does."""
    flag = cli.FLAGS
    for name in ("file", "model"):
        if not flag[name].value:
            raise UserError(f"--{name} is missing; such as --file=ckpt_epoch_240.pth --model=resnet32x4.")
    args = cli.parse_json("args", flag.args)
    from kdjax.inspection.exchange import import_weights
    from kdjax.reporting.tables import result_table
    from kdjax.store import Store

    name, result = import_weights(
        flag.file, flag.model, Store(flag.store), name=flag.run, args=args, data=flag.data, data_dir=flag.data_dir
    )
    print(f"run '{name}' is in {flag.store}; use it by --config.teachers.NAME.run={name}")
    if flag.data:
        print(result_table(result))


if __name__ == "__main__":
    cli.run(main)

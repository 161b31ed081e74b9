"""Reads PyTorch weights into the store: python -m kdjax.import_torch --file=ckpt_epoch_240.pth --model=resnet32x4"""

from absl import flags

from kdjax import cli
from kdjax.errors import UserError

cli.define_common_flags()
cli.define(flags.DEFINE_string, "file", "", "Weight file: .pth, .pt, .safetensors or .npz.")
cli.define(flags.DEFINE_string, "model", "", "Name of the network, as in config.model.name.")
cli.define(flags.DEFINE_string, "run", "", "Name of the run. The default is imported/MODEL-FILE.")
cli.define(flags.DEFINE_string, "args", "{}", "Arguments of the network in JSON, as config.model.args.")
cli.define(flags.DEFINE_string, "data", "", "Data set that it was trained on, such as cifar100. It is then evaluated.")


def main() -> None:
    """Writes the run that the flags describe and prints its name and its accuracy."""
    flag = cli.FLAGS
    for name in ("file", "model"):
        if not flag[name].value:
            raise UserError(f"--{name} is missing, such as --file=ckpt_epoch_240.pth --model=resnet32x4.")
    args = cli.parse_json("args", flag.args)
    from kdjax.inspection.exchange import import_weights
    from kdjax.reporting.tables import result_table
    from kdjax.store import Store

    name, result = import_weights(
        flag.file, flag.model, Store(flag.store), name=flag.run, args=args, data=flag.data, data_dir=flag.data_dir
    )
    print(f"run '{name}' is in {flag.store}; use it as a teacher with --config.teachers.NAME.run={name}")
    if flag.data:
        print(result_table(result))


if __name__ == "__main__":
    cli.run(main)

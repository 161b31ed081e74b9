"""Reads flax parameters: python -m kdjax.import_flax --checkpoint=DIR --model=my_network:Net --data=digits"""

from absl import flags

from kdjax import cli
from kdjax.errors import UserError

cli.define_common_flags()
cli.define(flags.DEFINE_string, "checkpoint", "", "Folder of orbax, or msgpack file of flax.serialization.")
cli.define(flags.DEFINE_string, "model", "", "Name of the network, as in config.model.name.")
cli.define(flags.DEFINE_string, "run", "", "Name of the run. The default is imported/MODEL-CHECKPOINT.")
cli.define(flags.DEFINE_string, "args", "{}", "Arguments of the network in JSON, as config.model.args.")
cli.define(flags.DEFINE_string, "data", "", "Data set that it was trained on, such as cifar100. It is then evaluated.")


def main() -> None:
    """Writes the run that the flags describe and prints its name and its accuracy."""
    flag = cli.FLAGS
    for name in ("checkpoint", "model", "data"):
        if not flag[name].value:
            raise UserError(f"--{name} is missing, such as --checkpoint=DIR --model=my_network:Net --data=digits.")
    args = cli.parse_json("args", flag.args)
    from kdjax.inspection.exchange import import_flax
    from kdjax.reporting.tables import result_table
    from kdjax.store import Store

    options = {"name": flag.run, "args": args, "data_dir": flag.data_dir}
    name, result = import_flax(flag.checkpoint, flag.model, Store(flag.store), flag.data, **options)
    print(f"run '{name}' is in {flag.store}; use it as a teacher with --config.teachers.NAME.run={name}")
    print(result_table(result))


if __name__ == "__main__":
    cli.run(main)

"""Lists, compares and deletes the runs of a store: python -m kdjax.runs --store=runs --match='digits/*'"""

import sys

from absl import flags

from kdjax import cli
from kdjax.errors import UserError

cli.define_common_flags()
cli.define(flags.DEFINE_string, "match", "*", "Pattern of the names; '*' also matches '/'.")
cli.define(flags.DEFINE_list, "compare", [], "Two runs, A,B, whose configs and metrics are shown side by side.")
cli.define(flags.DEFINE_boolean, "delete", False, "Delete the runs that --match names, after asking.")
cli.define(flags.DEFINE_boolean, "yes", False, "Delete without asking.")
cli.define(flags.DEFINE_boolean, "force", False, "Also delete runs that others need as teachers.")


def main() -> None:
    """Prints the table of the store's runs, compares two of them, or deletes some."""
    from kdjax.reporting import listing
    from kdjax.store import Store

    flag, store = cli.FLAGS, Store(cli.FLAGS.store)
    if flag.compare:
        if len(flag.compare) != 2:
            raise UserError(f"--compare needs two runs, --compare=A,B, not {len(flag.compare)}.")
        return print(listing.compare_runs(store, *flag.compare))
    runs = listing.list_runs(store, flag.match)
    if not runs:
        raise UserError(f"the store {store.root} has no run that matches '{flag.match}'.")
    print(runs)
    if flag.delete and (flag.yes or cli.confirm(f"Delete these {len(runs)} runs?")):
        deleted = listing.delete_runs(store, [run.name for run in runs], force=flag.force)
        print(f"{len(deleted)} runs are deleted.")


def joined(argv: list[str]) -> list[str]:
    """Returns a command line in which `--compare A B` is written as `--compare=A,B`, which absl understands."""
    if "--compare" in argv and len(names := argv[(at := argv.index("--compare")) + 1 : at + 3]) == 2:
        return [*argv[:at], f"--compare={','.join(names)}", *argv[at + 3 :]]
    return argv


if __name__ == "__main__":
    cli.run(main, joined(sys.argv))

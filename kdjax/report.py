"""Tells what the runs of a store found: python -m kdjax.report --store=runs --out=report"""

from absl import flags

from kdjax import cli

cli.define_common_flags()
cli.define(flags.DEFINE_list, "runs", [], "Patterns of names of runs, with commas; none for all of the store's.")
cli.define(flags.DEFINE_string, "out", "report", "The folder to write: report.html, report.md and figures.")
cli.define(flags.DEFINE_string, "title", "What the runs found", "Of the report.")
cli.define(flags.DEFINE_string, "baseline", "", "Method, or its losses; by default cross-entropy without a teacher.")
cli.define(flags.DEFINE_string, "interval", "t", "Of differences: 't' (Student's) or 'bootstrap'.")
cli.define(flags.DEFINE_string, "select", "", "'validation': each method's best setting, told on seeds of its own.")
cli.define(flags.DEFINE_string, "checkpoint", "last", "Of differences, and of what is selected by: 'last' or 'best'.")
cli.define(flags.DEFINE_string, "format", "", "'csv', 'json' or 'latex': print the table alone, and write nothing.")
cli.define(flags.DEFINE_integer, "networks", 8, "How many to look at of each test set; 0 for none.", lower_bound=0)


def main() -> None:
    """Writes the report of the runs that the flags name, or prints its table."""
    from kdjax.inspection.evidence import EXAMPLES, gather
    from kdjax.reporting import collect, comparison, formats, report, selection
    from kdjax.store import Store

    flag, store = cli.FLAGS, Store(cli.FLAGS.store)
    records = collect.collect(store, flag.runs)
    groups = selection.select_groups(records, flag.select, flag.checkpoint)
    options = {"baseline": flag.baseline, "interval": flag.interval, "checkpoint": flag.checkpoint}
    formats.check(flag.format)
    comparison.compare(groups, **options)  # refuses what it cannot compare before any network runs
    examples = 0 if flag.format else EXAMPLES
    evidence = gather(store, report.choose_networks(groups, flag.networks), flag.data_dir, examples)
    if flag.format:
        return print(formats.as_text(report.table_rows(groups, evidence, **options), flag.format), end="")
    page = report.make_page(store, records, groups, evidence, title=flag.title, **options)
    print(*report.write(page, flag.out), sep="\n")


if __name__ == "__main__":
    cli.run(main)

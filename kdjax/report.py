"""Compares the runs of a store in a report: python -m kdjax.report --store=runs --out=report"""

from absl import flags

from kdjax import cli

cli.define_common_flags()
cli.define(flags.DEFINE_list, "runs", [], "Patterns of run names, separated by commas. The default is all runs.")
cli.define(flags.DEFINE_string, "out", "report", "Folder for report.html, report.md and the figures.")
cli.define(flags.DEFINE_string, "title", "What the runs found", "Title of the report.")
cli.define(flags.DEFINE_string, "baseline", "", "Name or losses of the baseline. The default is cross-entropy alone.")
cli.define(flags.DEFINE_string, "interval", "t", "Interval of the differences: 't' (Student's t) or 'bootstrap'.")
cli.define(flags.DEFINE_string, "select", "", "'validation' selects each method's setting and reports on other seeds.")
cli.define(flags.DEFINE_string, "checkpoint", "last", "Checkpoint that is compared and selected by: 'last' or 'best'.")
cli.define(flags.DEFINE_string, "format", "", "'csv', 'json' or 'latex' prints the table and writes no report.")
cli.define(flags.DEFINE_list, "columns", [], "Further columns of the LaTeX table, such as loss,best,published.")
cli.define(flags.DEFINE_integer, "networks", 8, "Number of networks to analyze on each test set.", lower_bound=0)


def main() -> None:
    """Writes the report of the runs that the flags name, or prints only its table."""
    from kdjax.inspection.evidence import EXAMPLES, gather
    from kdjax.reporting import collect, comparison, formats, report, selection
    from kdjax.store import Store

    flag, store = cli.FLAGS, Store(cli.FLAGS.store)
    records = collect.collect(store, flag.runs, damaged := [])
    groups = selection.select_groups(records, flag.select, flag.checkpoint)
    options = {"baseline": flag.baseline, "interval": flag.interval, "checkpoint": flag.checkpoint}
    formats.check(flag.format, flag.columns)
    comparison.compare(groups, **options)  # refuses rows that cannot be compared before any network runs
    networks = report.choose_networks(groups, flag.networks)
    evidence = gather(store, networks, flag.data_dir, 0 if flag.format else EXAMPLES)
    if flag.format:
        return print(formats.as_text(report.table_rows(groups, evidence, **options), flag.format, flag.columns), end="")
    page = report.make_page(store, records, groups, evidence, title=flag.title, **options)
    page = page._replace(missing=[*page.missing, *damaged])
    print(*report.write(page, flag.out), sep="\n")


if __name__ == "__main__":
    cli.run(main)

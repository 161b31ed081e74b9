"""Reports of many runs: collecting, comparing, statistics, tables, figures and the page."""

"""A row of the report's table."""

from typing import NamedTuple

from kdjax.reporting.published import Published
from kdjax.reporting.run_record import Examples
from kdjax.reporting.statistics import Interval

MeanStd = tuple[float, float | None]  # mean, and standard deviation of several values


class TableRow(NamedTuple):
    """A row of the table; accuracies and differences are in %.

    Attributes:
      number: Number of the row, from 1.
      data: Name of the data set, with its protocols.
      network: Name of the network, with its arguments.
      method: Name of the method, or its generation in a chain.
      loss: Names of the losses joined by ' + '.
      teacher: Network and losses of each teacher joined by '; '.
      setting: The fields in which it differs from the method's other settings.
      runs: Number of runs.
      teachers: Number of different teachers, or of sets of teachers.
      last: Test accuracy of the last checkpoint.
      best: Test accuracy of the best checkpoint by validation, or None if a run has none.
      validation: Mean validation accuracy of the last checkpoint, or None.
      published: Accuracy that a paper reports, with its provenance, or None.
      against: Number of the baseline's row, or None.
      difference: Difference to the baseline's row, or None.
      pairs: Number of paired differences, 0 if the two rows have no split and seed in common.
      over: Unit of replication of the interval, in words.
      verdict: 'gain', 'loss', 'within noise', 'cannot tell', or '' without a difference.
      test_error: Standard error of the accuracy due to the finite test set.
      test_error_by: 'bootstrap', 'binomial', or 'unknown' if no manifest has the size of the test set.
      tried: Number of settings of the method.
      examples: Training examples that one run processed, or None.
      teacher_examples: Training examples that its teachers processed, or None.
      unequal: Whether settings or training examples differ from the baseline's.
      note: How the setting was selected.
    """

    number: int
    data: str
    network: str
    method: str
    loss: str
    teacher: str
    setting: str
    runs: int
    teachers: int
    last: MeanStd
    best: MeanStd | None
    validation: float | None
    published: Published | None
    against: int | None
    difference: Interval | None
    pairs: int
    over: str
    verdict: str
    test_error: float
    test_error_by: str
    tried: int
    examples: Examples
    teacher_examples: Examples
    unequal: bool
    note: str

"""The tables of a crossed study, from known numbers."""

import numpy as np
import pytest

from kdjax.reporting import statistics
from kdjax.reporting.contrasts import Score, interval, study_report
from kdjax.reporting.tables import markdown


def score(student, teacher, seed, split, last, best=None):
    result = {"last": {"test": {"accuracy": last}}, "best": {"test": {"accuracy": last if best is None else best}}}
    return Score(student, teacher, seed, split, ("kd",), result)


def test_differences_are_paired_and_their_interval_is_over_splits():
    alone = [
        score("alone", "", seed, split, 0.8 + 0.05 * split + 0.01 * seed) for split in range(3) for seed in range(2)
    ]
    gains = np.array([0.01, 0.02, 0.03])
    kd = [
        s._replace(
            student="KD",
            teacher="CE",
            result=score("", "", 0, 0, s.result["last"]["test"]["accuracy"] + gains[s.split]).result,
        )
        for s in alone
    ]
    report = study_report("T", "alone", (), alone + kd)
    half = 4.302653 * np.std(100 * gains, ddof=1) / np.sqrt(3)
    assert f"+2.00 [{2 - half:+.2f}, {2 + half:+.2f}] (noise)" in report
    values = [100 * s.result["last"]["test"]["accuracy"] for s in alone]
    assert f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}" in report and "| 6 " in report


def test_a_difference_that_excludes_zero_is_no_noise():
    first = [score("KD", "MSE", 0, split, 0.9 + 0.001 * split) for split in range(5)]
    second = [score("KD", "CE", 0, split, 0.8) for split in range(5)]
    alone = [score("alone", "", 0, split, 0.8) for split in range(5)]
    report = study_report("T", "alone", ((("KD", "MSE"), ("KD", "CE")),), alone + first + second)
    line = next(line for line in report.splitlines() if line.startswith("| KD from MSE − KD from CE"))
    assert "+10.20" in line and "noise" not in line


def test_last_and_best_are_both_reported():
    report = study_report("T", "alone", (), [score("alone", "", 0, 5, 0.5, 0.75)])
    assert "| 50.00 | 75.00 |" in report


def test_markdown_refuses_ragged_rows():
    with pytest.raises(ValueError):
        markdown(("a", "b"), [("1",)])


def test_one_draw_has_no_interval():
    assert interval([0.5]) == "+0.50 (one draw)"


def test_equal_differences_cannot_tell():
    assert interval([-4.69, -4.69]) == "-4.69 (cannot tell: all 2 differences are equal)"
    assert "[" not in interval([0.0, 0.0, 0.0])


def test_splits_that_redraw_the_same_examples_widen_the_interval():
    values, overlap = [1.0, 2.0, 4.0, 5.0], 0.3
    half = 3.182446 * np.std(values, ddof=1) * np.sqrt(1 / 4 + overlap)  # Nadeau & Bengio 2003, equation 3
    assert interval(values, overlap=overlap).startswith(f"+3.00 [{3 - half:+.2f}, {3 + half:+.2f}]")
    runs = [
        score(name, "", 0, split, 0.8 + gain * split / 100)
        for name, gain in (("alone", 0), ("KD", 1))
        for split in range(3)
    ]
    own = [one._replace(teacher="CE") if one.student == "KD" else one for one in runs]
    assert "Nadeau" in study_report("T", "alone", (), own, overlap) and "Nadeau" not in study_report(
        "T", "alone", (), own
    )


def test_a_figure_fills_no_marker_where_all_differences_are_equal(monkeypatch):
    from matplotlib.axes import Axes

    from kdjax.reporting import figures

    fills, plot = [], Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda *args, **kw: (fills.append(kw.get("fillstyle")), plot(*args, **kw))[1])
    equal, clear = statistics.Interval(-4.69, -4.69, -4.69, 2), statistics.Interval(2.0, 1.0, 3.0, 5)
    figures.forest("name", "title", "caption", "label", {"equal": equal, "clear": clear})
    assert [fill for fill in fills if fill] == ["none", "full"]

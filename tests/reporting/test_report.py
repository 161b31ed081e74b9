"""The report of a store: of made-up results, of trained networks, and in a browser."""

import csv
import io
import itertools
import json
import math
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree

import jax
import numpy as np
import pytest

from kdjax.config import defaults
from kdjax.config_files import load_config
from kdjax.errors import UserError
from kdjax.inspection.evidence import gather
from kdjax.reporting import comparison, figures, formats, report, sections, selection
from kdjax.reporting.collect import collect
from kdjax.store import Store
from kdjax.training.loop import train

CE = {"cross_entropy": {"weight": 1.0}}
MSE = {"softmax_mse": {"weight": 1.0}}
KD = {"cross_entropy": {"weight": 0.1}, "kd": {"weight": 0.9, "temperature": 4.0}}


def add(
    store,
    name,
    losses,
    accuracy,
    *,
    teacher="",
    seed=0,
    split=0,
    epochs=2,
    distance=None,
    validation=None,
    best=None,
    **own,
):
    """Adds a run with a given test accuracy; `own` are further fields of its config, with '__' for dots."""
    config = defaults()
    config.update({"losses": losses, "seed": seed, "epochs": epochs})
    config.data.split_seed = split
    if teacher:
        config.teachers = {"a": {"run": teacher, "weight": 1.0}}
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in own.items()})
    test = {"accuracy": accuracy, "loss": 1.0, **({} if distance is None else {"distance": distance})}
    told = {"test": test, "validation": {"accuracy": accuracy if validation is None else validation, "loss": 1.0}}
    scores = {"epoch": epochs, "step": 10 * epochs, "train": {"accuracy": 1.0, "loss": 0.1}, **told}
    run = store.run(name)
    splits = {"train": {"sha256": "", "size": 1600}, "test": {"sha256": f"split {split}", "size": 400}}
    run.begin({"config": config.to_dict(), "splits": splits})
    for epoch in range(1, epochs + 1):
        run.append_metrics({**scores, "epoch": epoch})
    best = {**scores, "test": {**test, "accuracy": accuracy if best is None else best}}
    if distance is not None:
        best["test"]["distance"] = distance / 2
    run.write_result({"last": scores, "best": best, "seconds": 1.0})
    return run


def lines_of(store, select="", **options):
    return comparison.compare(selection.select_groups(collect(store), select), **options)


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "runs")


@pytest.fixture
def nested(store) -> Store:
    """Three teachers for each of two losses, four students of each, students alone; the gain depends on the teacher."""
    for t in range(3):
        add(store, f"ce-s{t}", CE, 0.9, seed=t, distance=0.5 - 0.1 * t)
        add(store, f"mse-s{t}", MSE, 0.9 + 0.01 * t, seed=t, distance=0.1)
        for s in range(4):
            add(store, f"kd-ce-{t}-s{10 + s}", KD, 0.80 + 0.01 * t + 0.001 * s, teacher=f"ce-s{t}", seed=10 + s)
            gained = 0.02 if t == 0 else 0.03
            accuracy = 0.80 + 0.01 * t + 0.001 * s + gained
            add(store, f"kd-mse-{t}-s{10 + s}", KD, accuracy, teacher=f"mse-s{t}", seed=10 + s)
    for s in range(4):
        add(store, f"alone-s{10 + s}", CE, 0.79 + 0.001 * s, seed=10 + s)
    return store


def test_runs_that_differ_only_in_seeds_are_one_row(nested):
    lines = lines_of(nested)
    assert [(line.loss, line.teacher.rpartition(": ")[2], line.runs, line.teachers) for line in lines] == [
        ("cross_entropy", "", 7, 0),
        ("softmax_mse", "", 3, 0),
        ("cross_entropy + kd", "cross_entropy", 12, 3),
        ("cross_entropy + kd", "softmax_mse", 12, 3),
    ]
    students = lines[2]
    values = [80 + t + 0.1 * s for t in range(3) for s in range(4)]
    assert students.last == pytest.approx((np.mean(values), np.std(values, ddof=1))) and students.best == students.last
    assert students.examples == students.teacher_examples == 20 * defaults().batch_size


def test_the_interval_of_students_of_several_teachers_is_over_teachers(nested):
    students = lines_of(nested)[2]
    # Student minus student alone of the same seed, averaged over the students of each teacher: 1, 2 and 3.
    assert students.difference[:1] == pytest.approx((2.0,)) and students.difference.units == 3
    assert students.over == "3 teachers" and students.pairs == 12
    half = 4.302653 * 1 / np.sqrt(3)
    assert students.difference[1:3] == pytest.approx((2 - half, 2 + half), abs=1e-5)
    assert students.verdict == "within noise"


def test_the_interval_covers_the_luck_of_runs_that_several_teachers_are_compared_with(store):
    """The students of three teachers are compared with the same runs alone, whose luck is in every teacher's mean."""
    alone = {10: 0.70, 11: 0.78, 12: 0.74}
    for t in range(3):
        add(store, f"ce-s{t}", CE, 0.9, seed=t)
    for seed, accuracy in alone.items():
        add(store, f"alone-s{seed}", CE, accuracy, seed=seed, model__name="resnet8")
        for t in range(3):
            add(store, f"kd8-{t}-s{seed}", KD, 0.80 + 0.001 * t, teacher=f"ce-s{t}", seed=seed, model__name="resnet8")
    line = next(line for line in lines_of(store) if line.network == "resnet8" and line.teacher)
    half = 4.302653 * 4 / np.sqrt(3)  # 10.1, 2.1 and 6.1 above the three runs alone
    assert line.difference[:3] == pytest.approx((6.1, 6.1 - half, 6.1 + half), abs=1e-5)
    assert line.over == "3 seeds beside 3 teachers" and line.verdict == "within noise"
    for seed in (11, 12):
        shutil.rmtree(store.run(f"alone-s{seed}").path)
    line = next(line for line in lines_of(store) if line.network == "resnet8" and line.teacher)
    assert line.over == "one run beside 3 teachers" and line.verdict == "cannot tell"


def test_test_sets_of_several_splits_share_examples(store):
    for split in range(5):
        add(store, f"ce-split{split}-s0", CE, 0.9, split=split)
    (line,) = lines_of(store)
    # The error of the mean accuracy on five test sets of 400, each drawn from the same 2000 examples.
    random = np.random.default_rng(0)
    right = random.random((4000, 2000)) < 0.9
    drawn = [right[:, random.permutation(2000)[:400]].mean(axis=1) for _ in range(5)]
    assert line.test_error == pytest.approx(100 * np.std(np.mean(drawn, axis=0)), rel=0.05)
    assert line.test_error_by == "binomial"
    (line,) = lines_of(store, correct={"ce-split0-s0": np.arange(400) % 10 > 0})
    assert line.test_error == pytest.approx(100 * np.sqrt(0.09 / 400 * 1.8 / 5), rel=0.05)


def test_a_published_accuracy_is_shown_for_teachers_with_the_papers_losses_only(store):
    printed = {"published__accuracy": 73.33, "published__teacher_losses": ("cross_entropy",)}
    add(store, "ce-s0", CE, 0.9)
    add(store, "mse-s0", MSE, 0.9)
    for teacher in ("ce-s0", "mse-s0", "not-here-s0"):
        add(store, f"kd-{teacher}", KD, 0.8, teacher=teacher, **printed)
    published = [line.published for line in lines_of(store) if line.teacher]
    assert [number and number.accuracy for number in published] == [73.33, None, None]


BEST = {"source": "DKD, Zhao et al. 2022", "selection": "best epoch", "epochs": 240, "view": "crop_flip", "runs": 5}
OLDER = {"source": "Zheng & Yang 2024", "protocol": "last epoch, test split"}  # fields that older versions wrote


@pytest.mark.parametrize(
    "given, cell, provenance",
    [
        (
            BEST,
            "76.32 (DKD, Zhao et al. 2022, best epoch of 240)",
            "DKD, Zhao et al. 2022, best epoch of 240, view crop_flip, mean of 5 runs",
        ),
        (OLDER, "76.32 (Zheng & Yang 2024, last epoch, test split)", "Zheng & Yang 2024, last epoch, test split"),
        (
            {"source": "A paper", "selection": "", "epochs": 0, "runs": 1},
            "76.32 (A paper, epoch not stated)",
            "A paper, epoch not stated, one run",
        ),
        ({}, "76.32", ""),
    ],
)
def test_a_published_accuracy_is_shown_with_its_source_and_its_epoch(store, given, cell, provenance):
    add(store, "ce-s0", CE, 0.9)
    own = {f"published__{field}": value for field, value in {"accuracy": 76.32, **given}.items()}
    add(store, "kd-s0", KD, 0.8, teacher="ce-s0", epochs=given.get("epochs") or 2, **own)
    rows = collect(store)
    page = report.make_page(store, rows, selection.select_groups(rows), {})
    assert [row[page.header.index("published")] for row in page.table] == ["", cell]
    assert f"#2: {provenance or 'no source stated'}." in page.columns["published"]
    record = json.loads(formats.as_text(lines_of(store), "json"))[1]
    assert (record["published"], record["published_from"]) == (76.32, provenance)


def test_a_number_beside_another_recipe_than_its_own_says_what_differs(store):
    """One epoch on 1,600 images, from a teacher of one epoch, is not the paper's run of 240 epochs on 50,000."""
    for name, argument, teacher in (("ce-s0", "ce_teacher", ""), ("kd-s0", "kd_student", "ce-s0")):
        paper = load_config(f"configs/{argument}.py:cifar100,resnet56,resnet20")
        own = {
            "published": paper.published.to_dict(),
            "model__name": paper.model.name,
            "data__name": "cifar100",
            "data__validation": 0.0,
            "schedule__name": paper.schedule.name,
            "schedule__milestones": paper.schedule.milestones,
        }
        add(store, name, paper.losses.to_dict(), 0.2, teacher=teacher, epochs=1, **own)
    student, teacher = (line.published for line in lines_of(store))
    mine = ("1,600 training images instead of 50,000", "epochs 1 instead of 240")
    assert teacher.unlike == mine and student.unlike == (*mine, *(f"teacher's {told}" for told in mine))
    header, (cells, _) = formats.cells(lines_of(store))
    words = f"last epoch of 240); not the paper's recipe: {', '.join((*mine, student.unlike[2]))} and 1 more"
    assert cells[header.index("published")].endswith(words)
    rows = collect(store)
    note = report.make_page(store, rows, selection.select_groups(rows), {}).columns["published"]
    assert all(told in note for told in student.unlike)
    record = json.loads(formats.as_text(lines_of(store), "json"))[0]
    assert record["published_unlike"] == "; ".join(student.unlike)


def test_a_row_with_runs_of_several_versions_has_the_provenance_of_the_newest(store):
    add(store, "ce-s0", CE, 0.9)
    for seed, given in enumerate((OLDER, BEST)):
        own = {f"published__{field}": value for field, value in {"accuracy": 76.32, **given}.items()}
        add(store, f"kd-s{seed}", KD, 0.8, teacher="ce-s0", seed=seed, **own)
    _, line = lines_of(store)
    assert line.published.unlike == ("epochs 2 instead of 240",)
    assert line.runs == 2 and line.published.origin == "DKD, Zhao et al. 2022, best epoch of 240"


def test_there_is_no_note_on_published_accuracies_without_one(nested):
    rows = collect(nested)
    page = report.make_page(nested, rows, selection.select_groups(rows), {})
    assert "published" not in page.header and "published" not in page.columns and "verdict" in page.columns


def test_a_row_of_one_teacher_says_so(nested):
    for t in (1, 2):
        shutil.rmtree(nested.run(f"mse-s{t}").path)
        for s in range(4):
            shutil.rmtree(nested.run(f"kd-mse-{t}-s{10 + s}").path)
    line = next(line for line in lines_of(nested) if "softmax_mse" in line.teacher)
    assert line.over == "one teacher, 4 seeds" and line.difference.units == 4


def test_students_of_different_teachers_with_the_same_seed_all_count(store):
    """Three large networks with an assistant each, all of one seed; three imported files, whose seed is not known."""
    for t in range(3):
        add(store, f"big-s{t}", CE, 0.95, seed=t, model__name="resnet20")
        add(store, f"assistant-{t}-s0", KD, 0.9, teacher=f"big-s{t}", model__name="resnet8")
        store.run(f"file-{t}").begin(
            {"config": {**defaults().to_dict(), "name": "imported"}, "imported_from": {"sha256": f"{t}"}}
        )
        for s in range(2):
            add(store, f"by-assistant-{t}-s{s}", KD, 0.8 + 0.01 * t, teacher=f"assistant-{t}-s0", seed=s)
            add(store, f"by-file-{t}-s{s}", KD, 0.8 + 0.01 * t, teacher=f"file-{t}", seed=s)
    lines = {line.teacher: line for line in lines_of(store) if line.network == "mlp"}
    assert {(line.runs, line.teachers) for line in lines.values()} == {(6, 3)} and len(lines) == 2
    assert all(line.last[0] == pytest.approx(81) for line in lines.values())


def test_other_teacher_checkpoints_and_other_data_seeds_are_other_settings(store):
    add(store, "ce-s0", CE, 0.9)
    for checkpoint, accuracy in (("last", 0.7), ("best", 0.8)):
        taught = {"run": "ce-s0", "weight": 1.0, "checkpoint": checkpoint}
        add(store, f"kd-{checkpoint}-s0", KD, accuracy, teachers={"a": taught})
    rows = [(line.setting, line.runs, line.last[0]) for line in lines_of(store) if line.teacher]
    assert rows == [("teachers.a.checkpoint = best", 1, 80.0), ("teachers.a.checkpoint = last", 1, 70.0)]
    for seed in (1, 2):
        add(store, f"drawn-{seed}", MSE, 0.5, data__args={"seed": seed})
    assert [line.setting for line in lines_of(store) if line.loss == "softmax_mse"] == [
        "data.args.seed = 1",
        "data.args.seed = 2",
    ]


def test_missing_teachers_are_distinguished_by_name(nested):
    for t in range(3):
        shutil.rmtree(nested.run(f"ce-s{t}").path)
    line = next(line for line in lines_of(nested, baseline="cross_entropy") if line.teacher == "?: ?")
    assert (line.runs, line.teachers, line.over, line.teacher_examples) == (12, 3, "3 teachers", None)


def test_rows_without_a_seed_in_common_are_compared_unpaired(store):
    for seed in range(3):
        add(store, f"a-s{seed}", CE, 0.80 + 0.01 * seed, seed=seed)
        add(store, f"b-s{seed}", MSE, 0.90 + 0.01 * seed, seed=seed + 5)
    line = lines_of(store)[1]
    assert line.over == "unpaired, 3 seeds and 3 seeds" and line.pairs == 0
    assert line.difference.mean == pytest.approx(10) and line.verdict == "gain"


def test_the_baseline_can_be_named_and_unknown_options_are_refused(nested):
    lines = lines_of(nested, baseline="softmax_mse")
    assert lines[1].against is None and lines[0].against == 2
    with pytest.raises(UserError, match="Did you mean 'softmax_mse'"):
        lines_of(nested, baseline="softmax_mes")
    with pytest.raises(UserError, match="unknown --interval 'z'"):
        lines_of(nested, interval="z")
    with pytest.raises(UserError, match="unknown --select 'test'"):
        lines_of(nested, select="test")


def test_smoothed_labels_are_compared_with_plain_ones(store):
    smoothed = {"cross_entropy": {"weight": 1.0, "label_smoothing": 0.1}}
    for seed in range(3):
        add(store, f"ce-s{seed}", CE, 0.8, seed=seed)
        add(store, f"smoothed-s{seed}", smoothed, 0.81 + 0.001 * seed, seed=seed)
    assert [(line.against, line.pairs) for line in lines_of(store)] == [(None, 0), (1, 3)]
    add(store, "other-s0", smoothed, 0.8, data__name="gaussian")
    add(store, "kd-s0", KD, 0.8, teacher="other-s0", data__name="gaussian")
    assert [line.against for line in lines_of(store) if line.data == "gaussian"] == [None, 3]


def test_the_setting_is_selected_and_reported_on_different_seeds(store):
    """The setting with the better test accuracy has the worse validation accuracy, which alone decides."""
    for seed in range(4):
        add(store, f"a-s{seed}", CE, 0.95, seed=seed, validation=0.5, optimizer__learning_rate=0.1)
        add(store, f"b-s{seed}", CE, 0.80 + 0.01 * seed, seed=seed, validation=0.6, optimizer__learning_rate=0.2)
    every, (chosen,) = lines_of(store), lines_of(store, select="validation")
    assert [line.setting for line in every] == ["optimizer.learning_rate = 0.1", "optimizer.learning_rate = 0.2"]
    assert chosen.setting == "optimizer.learning_rate = 0.2" and chosen.tried == 2 and chosen.runs == 2
    assert chosen.last[0] == pytest.approx(82.5) and chosen.note == "selected on seeds 0, 1"


def test_settings_are_compared_on_the_seeds_that_most_settings_have(store):
    """One seed, which all settings have, decides; further seeds of one setting do not count."""
    for rate, validation in ((0.1, 0.6), (0.2, 0.9), (0.3, 0.5)):
        add(store, f"choosing-{rate}", CE, 0.99, seed=100, validation=validation, optimizer__learning_rate=rate)
    for seed in range(4):
        add(store, f"a-s{seed}", CE, 0.80 + 0.01 * seed, seed=seed, validation=0.1, optimizer__learning_rate=0.2)
    (line,) = lines_of(store, select="validation")
    assert (line.setting, line.note, line.runs) == ("optimizer.learning_rate = 0.2", "selected on seeds 100", 4)
    assert line.last[0] == pytest.approx(81.5)
    add(store, "b-s9", CE, 0.9, seed=9, validation=0.95, optimizer__learning_rate=0.4)
    (line,) = lines_of(store, select="validation")
    assert (line.setting, line.note) == ("optimizer.learning_rate = 0.2", "selected on seeds 100 among 3 settings")
    assert line.tried == 4 and line.runs == 4


def test_settings_without_a_common_seed_are_selected_and_reported_on_the_same_seeds(store):
    for seed, rate in enumerate((0.1, 0.2, 0.3)):
        add(store, f"a-s{seed}", CE, 0.8, seed=seed, validation=rate, optimizer__learning_rate=rate)
    (line,) = lines_of(store, select="validation")
    assert line.note == "no seed that two settings have: selected and reported on the same seeds"
    assert line.setting == "optimizer.learning_rate = 0.3" and line.tried == 3


def test_without_a_validation_accuracy_all_settings_are_reported(store):
    for seed, rate in itertools.product(range(4), (0.1, 0.2)):
        run = add(store, f"a-{rate}-s{seed}", CE, 0.5 + rate, seed=seed, optimizer__learning_rate=rate)
        result = run.result
        del result["last"]["validation"]
        run.write_result(result)
    lines = lines_of(store, select="validation")
    assert [(line.runs, line.tried, line.note) for line in lines] == [
        (4, 2, "no validation accuracy: no setting was selected")
    ] * 2


def test_differences_are_of_the_requested_checkpoint(store):
    for seed in range(3):
        add(store, f"a-s{seed}", CE, 0.8, seed=seed, best=0.81)
        add(store, f"b-s{seed}", MSE, 0.9, seed=seed, best=0.7 + 0.01 * seed)
    last, best = (lines_of(store, checkpoint=name)[1] for name in ("last", "best"))
    assert last.difference.mean == pytest.approx(10) and last.verdict == "cannot tell"
    assert best.difference.mean == pytest.approx(-10) and best.verdict == "loss"
    with pytest.raises(UserError, match="unknown --checkpoint 'first'"):
        selection.select_groups(collect(store), "", "first")


def test_equal_differences_have_no_interval(store):
    for seed in range(2):
        add(store, f"a-s{seed}", CE, 0.8, seed=seed)
        add(store, f"b-s{seed}", MSE, 0.75, seed=seed)
    line = lines_of(store)[1]
    assert line.verdict == "cannot tell"
    assert formats.difference(line) == "-5.00 (cannot tell: all 2 differences are equal) to #1"


def test_unequal_budgets_are_marked(store):
    for seed in range(2):
        add(store, f"alone-s{seed}", CE, 0.8, seed=seed)
        add(store, f"long-s{seed}", MSE, 0.9, seed=seed, epochs=5)
        add(store, f"alike-s{seed}", {"tolerant": {"weight": 1.0}}, 0.9, seed=seed)
    lines = {line.loss: line for line in lines_of(store)}
    assert lines["softmax_mse"].unequal and not lines["tolerant"].unequal
    header, rows = formats.cells(list(lines.values()))
    tried = {row[header.index("loss")]: row[header.index("tried")] for row in rows}
    assert tried == {"cross_entropy": "1", "softmax_mse": "1*", "tolerant": "1"}


def test_the_examples_of_the_run_that_weights_came_from_count(store):
    for seed in range(3):
        add(store, f"ce-s{seed}", CE, 0.9, seed=seed, epochs=2)
        add(store, f"head-s{seed}", MSE, 0.9, seed=seed, epochs=1, init_from=f"ce-s{seed}")
        add(store, f"scratch-s{seed}", {**CE, **MSE}, 0.9, seed=seed, epochs=2)
    add(store, "lost-s0", {**MSE, **KD}, 0.9, init_from="gone-s0")
    base, head, lost, scratch = lines_of(store)
    each = 10 * defaults().batch_size
    assert (base.examples, scratch.examples, scratch.unequal) == (2 * each, 2 * each, False)
    assert (head.runs, head.examples, head.tried, head.unequal) == (3, 3 * each, 1, True)
    assert lost.examples is None and lost.unequal


def test_a_run_that_is_a_teacher_twice_counts_once(store):
    add(store, "first", CE, 0.9)
    add(store, "second", KD, 0.9, teacher="first", epochs=3)
    teachers = {"a": {"run": "second", "weight": 0.5}, "b": {"run": "first", "weight": 0.5}}
    add(store, "both", KD, 0.9, teachers=teachers)
    (line,) = (line for line in lines_of(store) if ";" in line.teacher)
    assert (line.examples, line.teacher_examples) == (20 * 64, (20 + 30) * 64)


def test_every_format_has_the_same_numbers(nested):
    lines = lines_of(nested)
    records = json.loads(formats.as_text(lines, "json"))
    rows = list(csv.DictReader(io.StringIO(formats.as_text(lines, "csv"))))
    assert [record["last_mean"] for record in records] == [line.last[0] for line in lines]
    assert [float(row["last_mean"]) for row in rows] == [line.last[0] for line in lines]
    latex = formats.as_text(lines, "latex")
    assert latex.count(r"\\") == len(lines) + 1 and r"softmax\_mse" in latex
    assert not re.search(r"(?<!\\)[%_#]", latex)
    with pytest.raises(UserError, match="Did you mean 'latex'"):
        formats.check("latec")


def test_the_latex_table_is_that_of_a_paper(nested):
    """Each line has as many cells as the columns that the tabular declares, and the rows' own numbers."""
    lines = lines_of(nested)
    for more in ((), ("loss", "best")):
        latex = formats.as_text(lines, "latex", more).splitlines()
        header, *body = [line.removesuffix(r" \\").split(" & ") for line in latex if line.endswith(r"\\")]
        assert latex[0] == rf"\begin{{tabular}}{{{'l' * len(header)}}}" and len(header) == 5 + len(more)
        assert (header[0], header[1], header[-3], header[-1]) == ("Method", "Teacher", r"Accuracy [\%]", "n")
        assert {len(row) for row in body} == {len(header)} and [row[-1] for row in body] == [str(r.runs) for r in lines]
        for row, line in zip(body, lines, strict=True):
            assert row[-3].replace(r"$\pm$", "±") == formats.spread(line.last)
            assert row[-2].startswith("" if line.difference is None else f"{line.difference.mean:+.2f}")
            assert "\\#" not in row[-2]  # a row of the report that the paper's table does not number


@pytest.mark.parametrize(
    "name, columns, words",
    [
        ("csv", ("loss",), "--columns adds columns to --format=latex"),
        ("latex", ("verdit",), "there is no column 'verdit'. Did you mean 'verdict'"),
        ("latex", ("runs",), "'runs' is in the table already"),
    ],
)
def test_wrong_columns_are_one_line(name, columns, words):
    with pytest.raises(UserError, match=words):
        formats.check(name, columns)


def test_a_store_without_checkpoints_has_a_table_curves_and_distances(nested, tmp_path):
    add(nested, "chain-gen0-s0", MSE, 0.7)
    add(nested, "chain-gen1-s0", KD, 0.8, teacher="chain-gen0-s0")
    nested.run("begun").begin({"config": {**defaults().to_dict(), "losses": CE}})
    rows = collect(nested)
    found = selection.select_groups(rows)
    evidence = gather(nested, report.choose_networks(found, 2))
    page = report.make_page(nested, rows, found, evidence, title="<Known> results")
    names = [figure.name for figure in page.figures]
    assert names == ["learning-1", "generations-1", "distance-1"]
    # Two networks without a checkpoint, and the methods that were not evaluated.
    assert "Not finished: begun." in page.lead and len(page.missing) == 3
    # The CE teachers have distances 0.5, 0.4, 0.3 and students that are 1 % better each; MSE teachers have 0.1.
    assert "Spearman" in page.figures[-1].caption
    html, markdown = report.write(page, tmp_path / "out")
    assert "&lt;Known&gt; results" in html.read_text() and "<Known>" not in html.read_text()
    for name in names:
        root = ElementTree.parse(tmp_path / "out" / "figures" / f"{name}.svg").getroot()
        assert root.tag.endswith("svg") and f"figures/{name}.svg" in markdown.read_text()
    for line in formats.markdown_table(comparison.compare(found)).splitlines()[2:]:
        assert line.split("|")[2] in markdown.read_text()


def test_a_teachers_distance_is_that_of_the_outputs_that_the_student_learned_from(store):
    add(store, "ce-s0", CE, 0.9, distance=0.5)
    uses = ({}, {"checkpoint": "best"}, {"temperature": 2.0}, {"checkpoint": "20"}, {"output": "clipped_logits"})
    uses += ({"classes": (1, 0)},)
    for number, own in enumerate(uses):
        taught = {"run": "ce-s0", "weight": 1.0, **own}
        add(store, f"kd-{number}-s0", KD, 0.8, teachers={"a": taught}, distance=0.1)
        add(store, f"other-{number}-s0", KD, 0.8, teachers={"a": taught}, distance=0.1, data__name="gaussian")
    rows = [row for row in collect(store) if row.teachers]
    assert [row.teacher_distances for row in rows] == 2 * [(0.5,), (0.25,), *4 * [(None,)]]
    drawn = sections.distances(selection.select_groups(rows))
    assert [figure.name for figure in drawn] == ["distance-1", "distance-2"]
    assert "on digits" in drawn[0].caption and "on gaussian" in drawn[1].caption
    assert all("Not shown: 4 students" in figure.caption for figure in drawn)
    (none,) = sections.distances(
        [own for own in selection.select_groups(rows) if None in own.runs[0].teacher_distances]
    )
    assert not none.svg and none.caption.startswith("Not shown: 8 students")


def test_a_name_can_have_any_character(store, tmp_path):
    name = "a $x^{$ | <b> & 5% _ \\ new\nline"
    run = add(store, "a", CE, 0.9)
    config = {**run.manifest["config"], "name": name}
    (run.path / "manifest.json").write_text(json.dumps({**run.manifest, "config": config}))
    rows = collect(store)
    page = report.make_page(store, rows, selection.select_groups(rows), {})
    html, markdown = report.write(page, tmp_path / "out")
    row = markdown.read_text().split("\n")[6]
    assert r"| a $x^{$ \| \<b> & 5% _ \\ new line |" in row and "<b>" not in html.read_text()
    latex = formats.as_text(comparison.compare(selection.select_groups(rows)), "latex")
    assert r"\$x\textasciicircum{}\{\$ \textbar{} \textless{}b\textgreater{} \& 5\% \_" in latex


def test_chains_with_the_same_name_in_different_folders_are_different_curves(store):
    for folder, gained in (("a", 0.01), ("b", 0.02)):
        for m in range(1, 3):
            losses = {"kd": {"weight": 1.0, "temperature": 100 * gained}}
            add(store, f"{folder}/chain-gen{m}-s0", losses, 0.8 + m * gained, teacher=f"x/chain-gen{m - 1}-s0")
    (figure,) = sections.generations(selection.select_groups(collect(store)))
    assert ">a/chain<" in figure.svg and ">b/chain<" in figure.svg
    shutil.rmtree(store.root / "b")
    (figure,) = sections.generations(selection.select_groups(collect(store)))
    assert ">chain<" in figure.svg


@pytest.mark.parametrize("taken", ["report.html", "report.md", "figures/learning-1.svg"])
def test_a_folder_in_place_of_a_file_is_refused_before_anything_is_written(store, tmp_path, taken):
    add(store, "a", CE, 0.9)
    rows = collect(store)
    page = report.make_page(store, rows, selection.select_groups(rows), {})
    (tmp_path / "out" / taken).mkdir(parents=True)
    with pytest.raises(UserError, match="there is a folder where a file should be.*--out"):
        report.write(page, tmp_path / "out")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


@pytest.mark.parametrize("file", ["result.json", "manifest.json"])
@pytest.mark.parametrize("own", [{}, {"last": None, "config": None}, {"last": {"step": 1, "test": {"accuracy": "1"}}}])
def test_a_damaged_run_is_told_and_left_out(nested, file, own, caplog):
    names = [record.name for record in collect(nested)]
    (nested.run("ce-s1").path / file).write_text(json.dumps({"format": 1, **own}))
    damaged = []
    assert [record.name for record in collect(nested, (), damaged)] == [name for name in names if name != "ce-s1"]
    assert len(damaged) == 1 and "ce-s1" in damaged[0] and "is damaged" in damaged[0]
    assert "run 'ce-s1' is left out" in caplog.text
    with pytest.raises(UserError, match="is damaged"):
        collect(nested, ["ce-s1"])


def test_a_loss_that_was_not_finite_leaves_a_gap_in_the_curve(store):
    run = add(store, "a", CE, 0.9)
    run.append_metrics({"epoch": 3, "train": {"accuracy": 1.0}, "validation": {"accuracy": 0.9, "loss": math.inf}})
    run.append_metrics({"epoch": 4, "train": None, "validation": {"accuracy": 0.9, "loss": 1.0}})
    rows = collect(store)
    page = report.make_page(store, rows, selection.select_groups(rows), {})
    assert [figure.name for figure in page.figures] == ["learning-1"]


def test_an_empty_store_and_a_pattern_without_a_match_are_refused(store, nested):
    with pytest.raises(UserError, match="matches --runs=x,y"):
        collect(nested, ["x", "y"])
    assert {row.name for row in collect(nested, ["ce-*", "mse-s0"])} == {"ce-s0", "ce-s1", "ce-s2", "mse-s0"}
    with pytest.raises(UserError, match="holds no runs"):
        collect(Store(store.root / "none"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two small convolutional networks, a student of the first, and their report."""
    rng = np.random.default_rng(0)
    labels, path = np.arange(96) % 3, tmp_path_factory.mktemp("data") / "images.npz"
    images = rng.integers(0, 200, (96, 6, 6, 3)).astype(np.uint8) + 20 * labels[:, None, None, None].astype(np.uint8)
    soft = rng.dirichlet(np.ones(3), 96)
    first, last = slice(0, 64), slice(64, None)
    test = {"test_images": images[last], "test_labels": labels[last], "test_soft": soft[last]}
    np.savez(path, images=images[first], labels=labels[first], soft=soft[first], **test)
    store, out = Store(tmp_path_factory.mktemp("runs")), tmp_path_factory.mktemp("out")
    for name, seed, losses, teacher in (("ce", 0, CE, ""), ("alone", 1, CE, ""), ("kd", 1, KD, "ce")):
        config = defaults()
        config.name, config.seed, config.losses = name, seed, losses
        config.model.name, config.model.head = "tests.models.test_feature_extraction:Plain", "head"
        config.data.name, config.data.args, config.data.validation = "arrays", {"path": str(path)}, 0.25
        config.epochs, config.batch_size, config.eval_batch_size = 2, 16, 32
        if teacher:
            config.teachers = {"a": {"run": teacher, "weight": 1.0}}
        train(config, store, name=name, devices=jax.local_devices()[:1], show=False)
    rows = collect(store)
    found = selection.select_groups(rows)
    evidence = gather(store, report.choose_networks(found, 8))
    page = report.make_page(store, rows, found, evidence)
    return evidence, page, report.write(page, out)[0], store


def test_the_page_of_trained_networks_has_all_figures(trained):
    evidence, page = trained[:2]
    names = [figure.name for figure in page.figures]
    assert names == ["learning-1", "distance-1", "reliability-1", "agreement-1", "overlap-1", "examples-1"]
    assert page.missing == [] and all(row[page.header.index("test set ±")].endswith("bootstrap") for row in page.table)
    (seen,) = evidence.values()
    assert set(seen.maps) == {"ce", "alone", "kd"} and len(seen.overlaps) == 3
    assert all(0 <= m.min() and m.max() <= 1 and m.shape == (4, 6, 6) for m in seen.maps.values())
    examples = page.figures[-1].svg
    assert all(word in examples for word in ("p*", "label 0", "map of #", "probability"))
    agreement = page.figures[3].svg
    votes = [outputs.logits.argmax(axis=1) for outputs in seen.outputs.values()]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert f"{np.mean(votes[a] == votes[b]):.2f}" in agreement


def test_a_student_is_shown_with_its_own_teacher(trained):
    """Not with another run of the same loss and network, such as the student alone."""
    evidence, page, _, store = trained
    rows = collect(store)
    found = selection.select_groups(rows)
    assert report.choose_networks(found, 8)["arrays"][:2] == ["kd", "ce"]
    numbers = {row.name: line for line, own in zip(comparison.compare(found), found) for row in own.runs}
    teachers = {row.name: row.teacher_runs for row in rows}
    assert sections._student_and_teacher(["alone", "ce", "kd"], numbers, teachers) == ["ce", "alone", "kd"]
    assert sections._student_and_teacher(["alone", "kd"], numbers, teachers) == ["alone", "kd"]
    for who in ("ce", "alone", "kd"):
        assert f"map of #{numbers[who].number}<" in page.figures[-1].svg


def test_of_a_method_the_run_that_taught_the_student_is_evaluated(store):
    for seed, accuracy in ((0, 0.9), (1, 0.8)):
        rate = {"optimizer__learning_rate": 0.1 * (seed + 1)}
        add(store, f"mse-s{seed}", MSE, accuracy, seed=seed, **rate)
    add(store, "kd-s0", KD, 0.8, teacher="mse-s1")
    assert report.choose_networks(selection.select_groups(collect(store)), 8) == {"digits": ["kd-s0", "mse-s1"]}


def test_networks_are_chosen_for_every_test_set(store):
    """The run of a method is on the test set that most methods have; a method on another test set is not left out."""
    for split in (0, 1):
        add(store, f"ce-split{split}", CE, 0.9, split=split)
    add(store, "mse-split1", MSE, 0.9, split=1)
    add(store, "elsewhere", {"cross_entropy": {"weight": 1.0}, **MSE}, 0.9, split=2)
    assert report.choose_networks(selection.select_groups(collect(store)), 8) == {
        "digits (test set 1)": ["ce-split1", "mse-split1"],
        "digits (test set 2)": ["elsewhere"],
    }


def test_a_short_curve_is_visible_beside_long_ones():
    long, short = (figures.Series("", range(n), [level] * n) for n, level in ((20, 90.0), (4, 50.0)))
    low, high = figures._y_limits([long, short])
    assert low < 50 and high > 90 and figures._y_limits([short]) is None


def test_a_network_of_another_step_than_the_result_is_not_evaluated(trained, tmp_path):
    """The store loads an older checkpoint if the last is damaged, which would be another network than the result's."""
    store = Store(shutil.copytree(trained[3].root, tmp_path / "runs"))
    run = store.run("alone")
    last = run.result["last"]
    run.write_result({**run.result, "last": {**last, "step": last["step"] + 1}})
    seen = gather(store, {"images": ["alone", "ce"]})["images"]
    assert list(seen.outputs) == ["ce"]
    assert f"'alone': its last checkpoint, of step {last['step'] + 1}, cannot be read" in seen.skipped[0]


def test_the_page_refers_to_no_other_file(trained):
    text = trained[2].read_text()
    assert not re.search(r"""(src|href)=["'](?!#|data:)""", text) and "@import" not in text and "<script" not in text
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    used = {a or b for a, b in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text)}
    assert used <= set(ids)


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def test_a_browser_opens_the_page_offline(trained, tmp_path):
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("no Chromium here")
    own = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    offline = ["--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND"]
    line = [browser, *own, *offline, f"--user-data-dir={tmp_path}", "--dump-dom", f"file://{trained[2]}"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    page = trained[1]
    assert f"<title>{page.title}</title>" in done.stdout
    assert done.stdout.count("<tr>") == 1 + len(page.table) and done.stdout.count("<svg") == len(page.figures)


def test_the_printed_table_has_the_errors_of_the_page(trained, door, tmp_path):
    """The verdict depends on the error of the test set, by bootstrap for evaluated networks."""
    _, page, _, store = trained
    done = door("kdjax.report", f"--store={store.root}", "--format=csv")
    rows = csv.DictReader(io.StringIO(done.stdout))
    errors = [f"{float(row['test_error']):.2f} {row['test_error_by']}" for row in rows]
    assert errors == [row[page.header.index("test set ±")] for row in page.table]


def test_the_command_writes_prints_and_refuses(nested, door, tmp_path):
    out = tmp_path / "out"
    store = f"--store={nested.root}"
    done = door("kdjax.report", store, f"--out={out}", "--networks=0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(out / "report.html"), str(out / "report.md")]
    assert door("kdjax.report", store, "--format=cvs").returncode == 2
    refused = door("kdjax.report", store, f"--out={tmp_path / 'none'}", "--baseline=kdd")
    assert refused.returncode == 2 and len(refused.stderr.splitlines()) == 1 and "--baseline='kdd'" in refused.stderr
    assert not (tmp_path / "none").exists()
    (tmp_path / "file").touch()
    in_the_way = door("kdjax.report", store, f"--out={tmp_path / 'file'}", "--networks=0")
    assert in_the_way.returncode == 2 and in_the_way.stderr.rstrip().endswith("move it, or choose another --out.")


def test_seeds_that_share_their_order_are_one_draw(store):
    for seed in range(3):
        add(store, f"shared-s{seed}", CE, 0.9, seed=seed, data__order_seed=7)
        add(store, f"own-s{seed}", KD, 0.9 + 0.01 * seed, seed=seed)
    counted = {group.runs[0].name[:-3]: len(group.runs) for group in selection.select_groups(collect(store), "")}
    assert counted == {"shared": 1, "own": 3}


def test_a_gain_that_all_pairs_have_on_the_same_examples_counts(store):
    """The error of the test set is that of the mean gain over all pairs, though single accuracies are less certain."""
    size, gains, correct = 2000, (60, 64, 68), {}
    for seed, gain in enumerate(gains):
        for name, loss, right in (("a", CE, 1600), ("b", MSE, 1600 + gain)):
            add(store, f"{name}-s{seed}", loss, right / size, seed=seed)
            correct[f"{name}-s{seed}"] = np.arange(size) < right
    line = lines_of(store, correct=correct)[1]
    per_example = np.mean([correct[f"b-s{s}"].astype(float) - correct[f"a-s{s}"] for s in range(3)], axis=0)
    of_test = 1.959964 * 100 * np.std(per_example) / np.sqrt(size)
    of_seeds = 4.302653 * np.std(gains, ddof=1) / np.sqrt(3) * 100 / size
    assert line.difference.mean == pytest.approx(3.2)
    assert line.difference.high - line.difference.mean == pytest.approx(np.hypot(of_seeds, of_test), rel=0.05)
    assert line.verdict == "gain"
    assert lines_of(store)[1].difference.high - line.difference.mean == pytest.approx(of_seeds)

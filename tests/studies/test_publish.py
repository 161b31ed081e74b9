"""Published results: the README's tables are those that the project's files of results give, and how they get there."""

import dataclasses
import pathlib

import pytest

from configs.studies import quickstart, which_teacher
from kdjax.errors import UserError
from kdjax.store import Store
from kdjax.studies import publish
from kdjax.studies.kinds import read_study
from kdjax.studies.results import ResultRow, Results, dumps

STUDIES = {"quickstart": quickstart, "which_teacher": which_teacher}


def test_tables_of_the_readmes_agree_with_the_results(root):
    files = sorted((root / "configs" / "studies" / "results").glob("*.json"))
    assert {path.stem for path in files} >= {"quickstart", "which_teacher_digits"}
    for path in files:
        module = next(name for name in STUDIES if path.stem.startswith(name))
        study = read_study(STUDIES[module].get_config(path.stem.removeprefix(module).removeprefix("_") or None))
        results, readme = study.stored(path, path), publish.readme_of(path)
        text = readme.read_text()
        part = publish.part(study, results, path, readme)
        assert publish.with_part(text, path.stem, part) == text, f"publish {path.stem} again"
        for figure in study.figures(results):
            assert (path.with_suffix("") / f"{figure.name}.svg").is_file()


def made(study) -> Results:
    """Returns results in which a teacher's students are right as often as its name is long."""
    rows = [ResultRow(part="pilot", seed=100, run="p", rate=0.1, teacher="CE", scores={"validation": 0.5})]
    for seed in study.seeds:
        for name, reading in study.teachers.items():
            scores = {"accuracy": 0.5, "nll": 1.0 + len(name) / 99, "ece": 0.1, "seen": len(name) / 99, "unseen": 0.2}
            bins = ((3.0, 1.0, 1.0), (0.0, 0.0, 0.0))
            rows.append(ResultRow(part="teacher", seed=seed, run="t", rate=0.1, teacher=name, scores=scores, bins=bins))
            for method in study.methods if reading.taught else ():
                scores = {"accuracy": len(name) / 20 + 0.001 * seed * (name == "MSE last")}
                key = {"teacher": name, "method": method}
                rows.append(ResultRow(part="student", seed=seed, run="s", rate=0.1, scores=scores, **key))
        control = {"method": "alone", "scores": {"accuracy": 0.25}}
        rows.append(ResultRow(part="student", seed=seed, run="a", rate=0.1, **control))
    return Results(tuple(rows), {"rates": {"CE": 0.1}}, study.seeds)


def test_publishing_copies_the_rows_and_writes_the_tables(tmp_path):
    config = which_teacher.get_config("smoke")
    folder = tmp_path / "studies"
    config.results = str(folder / "results" / "made.json")
    study, readme = read_study(config), folder / "README.md"
    store = Store(tmp_path / "runs")
    store.write_text("results.json", dumps(made(study), study.hash))
    (folder / "results").mkdir(parents=True)
    readme.write_text("before\n<!-- results of made -->\nformer\n<!-- end of made -->\nafter\n")
    assert "rows" in publish.publish(config, store)
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("-->\nafter\n") and "former" not in text
    assert "| MSE last − CE last" in text and "(results/made/gains.svg)" in text
    assert (folder / "results" / "made" / "reliability.svg").is_file()
    # 'MSE last' (8 letters) and 'CE last' (7) differ by 5 points, and by 0.1 more in seed 1.
    assert "+5.05" in text and "**" in text
    first = text
    publish.publish(config, Store(tmp_path / "lost"))  # from the project's file alone
    assert readme.read_text() == first
    readme.write_text("no place")
    with pytest.raises(UserError, match="write '<!-- results of made -->' and"):
        publish.publish(config, store)


def test_nothing_is_shown_before_the_last_seed_and_diverged_runs_have_a_row_of_their_own():
    study = read_study(which_teacher.get_config("smoke"))
    results = made(study)
    half = dataclasses.replace(results, finished=(0,))
    text = study.tables(half)
    assert "1 of 2 seeds are finished" in text and "MSE last" not in text and study.figures(half) == []
    rows = [
        dataclasses.replace(row, diverged=True, scores={"accuracy": 0.1})
        if (row.part, row.teacher, row.method, row.seed) == ("student", "MSE last", "KD, T = 1", 1)
        else row
        for row in results.rows
    ]
    text = study.tables(dataclasses.replace(results, rows=tuple(rows)))
    assert "| MSE last, diverged runs counted" in text and "**cannot tell**" in text and "(diverged)" in text


def test_publishing_refuses_what_has_no_results(tmp_path):
    config = which_teacher.get_config("smoke")
    with pytest.raises(UserError, match="keeps no results as data"):
        publish.publish(config, Store(tmp_path))
    config.results = str(pathlib.Path(tmp_path) / "results" / "none.json")
    with pytest.raises(UserError, match="run it first"):
        publish.publish(config, Store(tmp_path))

"""The runs of a store at a glance: their states, two side by side, and deleting them."""

import json

import pytest

from kdjax.config import defaults
from kdjax.errors import UserError
from kdjax.reporting.listing import compare_runs, delete_runs, list_runs
from kdjax.store import Store


def make_run(store: Store, name: str, *, teacher: str = "", epochs: int = 2, accuracy: float | None = None, **fields):
    """Writes a run as training leaves it, with a result if it has an accuracy."""
    config = defaults()
    config.losses = {"kd": {"weight": 1.0}} if teacher else {"cross_entropy": {"weight": 1.0}}
    config.teachers = {"a": {"run": teacher}} if teacher else {}
    config.update(fields)
    run = store.run(name)
    run.begin({"config": config.to_dict()})
    for epoch in range(1, epochs + 1):
        scores = {"test": {"loss": 1.0, "accuracy": 0.1 * epoch}}
        run.append_metrics({"epoch": epoch, "seconds": 1.5, "train": {"loss": 2.0 / epoch}, **scores})
    if accuracy is not None:
        split = {"test": {"loss": 0.5, "accuracy": accuracy}}
        run.write_result({"last": {"step": 8, **split}, "best": {"step": 4, **split}})
    return run


@pytest.fixture
def store(tmp_path) -> Store:
    store = Store(tmp_path / "runs")
    make_run(store, "a/teacher", accuracy=0.75)
    make_run(store, "a/student", teacher="a/teacher", accuracy=0.5, seed=3)
    make_run(store, "b/stopped", teacher="a/teacher", epochs=1)
    damaged = make_run(store, "b/damaged", epochs=1)
    (damaged.path / "manifest.json").write_text('{"format": 2, "config": [')
    return store


def test_the_four_states_are_told_apart_and_nothing_else_is_lost(store):
    with store.run("b/stopped").lock():
        assert {run.name: run.state for run in list_runs(store)} == {
            "a/student": "finished",
            "a/teacher": "finished",
            "b/damaged": "damaged",
            "b/stopped": "running",
        }
    student, stopped = (list_runs(store, name)[0] for name in ("a/student", "b/stopped"))
    assert stopped.state == "stopped"
    assert (student.epoch, student.last, student.best, student.seconds) == (2, 0.5, 0.5, 3.0)
    assert (student.losses, student.teachers, stopped.last, stopped.best) == (("kd",), ("a/teacher",), 0.1, None)
    files = [path for path in store.run("a/student").path.rglob("*") if path.is_file()]
    assert student.bytes == sum(path.stat().st_size for path in files)


@pytest.mark.parametrize(
    "file, text",
    [
        ("manifest.json", "[]"),
        ("manifest.json", '{"format": 2}'),
        ("result.json", '{"last": 3}'),
        ("result.json", '{"last": {"test": {"accuracy": "high"}}}'),
        ("metrics.jsonl", '{"epoch": "one", "seconds": 1}\n'),
        ("metrics.jsonl", "3\n3\n"),
    ],
)
def test_whatever_a_file_says_the_list_is_shown(store, file, text):
    (store.run("a/student").path / file).write_text(text)
    found = {run.name: run for run in list_runs(store)}
    assert found["a/student"].state == "damaged" and found["a/student"].problem
    assert found["a/teacher"].state == "finished" and "a/student is damaged: " in str(list_runs(store))


def test_a_run_that_another_needs_is_not_deleted_unless_forced(store):
    make_run(store, "b/grown", accuracy=0.5, init_from="a/student")
    for name, other in (("a/teacher", "a/student"), ("a/student", "b/grown")):
        with pytest.raises(UserError, match=f"'{name}' is needed by run '{other}'"):
            delete_runs(store, [name])
    with store.run("b/stopped").lock(), pytest.raises(UserError, match="is being trained"):
        delete_runs(store, ["b/grown", "b/stopped"], force=True)
    assert len(store.runs()) == 5  # nothing was deleted by the refused commands
    assert delete_runs(store, ["a/teacher"], force=True) == ["a/teacher"]
    assert delete_runs(store, ["b/grown", "a/student"])
    assert not (store.root / "a").exists() and store.runs() == ["b/damaged", "b/stopped"]


def test_two_runs_side_by_side(store):
    text = compare_runs(store, "a/teacher", "a/student")
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert ["config.seed", "0", "3"] in lines
    assert ["last, test accuracy", "75.00%", "50.00%"] in lines and ["2", "test accuracy", "20.00%", "20.00%"] in lines
    with pytest.raises(UserError, match="no run 'a/studnt'"):
        compare_runs(store, "a/teacher", "a/studnt")


def test_the_command(store, door):
    shown = door("kdjax.runs", f"--store={store.root}", "--match=a/*")
    assert shown.returncode == 0 and "a/student" in shown.stdout and "b/stopped" not in shown.stdout
    assert "75.00%" in door("kdjax.runs", f"--store={store.root}", "--compare", "a/teacher", "a/student").stdout
    refused = door("kdjax.runs", f"--store={store.root}", "--match=b/*", "--delete")
    assert refused.returncode == 2 and "repeat with --yes" in refused.stderr and len(store.runs()) == 4
    assert door("kdjax.runs", f"--store={store.root}", "--match=b/*", "--delete", "--yes").returncode == 0
    assert [json.loads((store.root / name / "manifest.json").read_text())["format"] for name in store.runs()] == [2, 2]

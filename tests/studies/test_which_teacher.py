"""The study of teachers on made images with three annotators: its rows, its measures, its file of results, its rule."""

import dataclasses
import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs.studies import which_teacher
from kdjax import analysis
from kdjax.config import check
from kdjax.data import load_dataset
from kdjax.errors import UserError
from kdjax.inspection.predict import load_run, predict, predict_run
from kdjax.reporting.statistics import Interval
from kdjax.store import Store
from kdjax.studies.kinds import read_study
from kdjax.studies.results import design_of, dumps, load, pack, unpack
from kdjax.studies.runner import RunCounter, Runner
from kdjax.studies.teacher_contrasts import Contrast, verdict
from kdjax.studies.teacher_measures import annotators_of, distance


def human(folder, **changed) -> ConfigDict:
    """Returns the human study with small networks, on made images in a folder."""
    draw = np.random.default_rng(0)
    classes = np.arange(300) % 4
    images = (draw.normal(size=(300, 4, 4, 3)) * 40 + 30 * classes[:, None, None, None] + 60).clip(0, 255)
    noise = draw.integers(0, 4, (3, 200))
    people = np.where(draw.random((3, 200)) < 0.3, noise, classes[:200])
    own = {f"annotator{i + 1}": labels for i, labels in enumerate(people)}
    images, soft = images.astype(np.uint8), draw.dirichlet(np.ones(4), 100).astype(np.float32)
    test = {"test_images": images[200:], "test_labels": classes[200:], "test_soft": soft}
    np.savez(folder / "made.npz", images=images[:200], **own, **test)
    study = which_teacher.get_config("human")
    study.seeds, study.results, study.student_rates = (1,), "", (0.1,)
    study.runs.CE.rates = study.runs.MSE.rates = (0.05, 0.1)
    for config in (*(trained.config for trained in study.runs.values()), study.student, *study.controls.values()):
        config.data.args.path = str(folder / "made.npz")
        config.data.protocols.random_split = {"train": 80, "validation": 40}
        config.model.name, config.model.args = "mlp", {"hidden": (6,)}
        config.epochs, config.eval_every, config.batch_size, config.eval_batch_size = 2, 1, 40, 40
    study.update(changed)
    return study


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Returns the study, its runner and its results."""
    folder = tmp_path_factory.mktemp("human")
    config = human(folder)
    config.gates = ({**config.gates[0], "least": -9.0},)
    study, runner = read_study(config), Runner(Store(folder / "runs"), "", RunCounter())
    return study, runner, study.run(runner)


def test_every_run_of_the_design_has_its_row(finished):
    study, runner, results = finished
    assert [row.teacher for row in results.of("pilot")] == ["CE", "CE", "MSE", "MSE", "CE", "MSE"]  # two beyond an edge
    assert all(row.seed == 100 and "-s100" in row.run for row in results.of("pilot"))
    assert {row.teacher for row in results.of("teacher")} == set(study.teachers)
    students = {(row.teacher, row.method) for row in results.of("student")}
    taught = [name for name, reading in study.teachers.items() if reading.taught]
    assert students == {(name, method) for name in taught for method in study.methods} | {
        ("", name) for name in study.controls
    }
    assert results.finished == (1,) and results.choices["gate"]["passed"]
    # One seed's students share weights, order, views and data, and none of them with a teacher or another seed.
    configs = [runner.store.run(row.run).manifest["config"] for row in results.of("student")]
    assert {config["seed"] for config in configs} == {1001} and {c["data"]["split_seed"] for c in configs} == {1}
    assert {tuple(c["data"]["args"]["annotators"]) for c in configs} == {("annotator1", "annotator3")}
    assert {c["data"]["args"]["labels"] for c in configs} == {"annotator2"}


def test_a_fitted_teacher_has_the_temperature_that_its_students_use(finished):
    _, runner, results = finished
    (teacher,) = results.of("teacher", teacher="CE fitted")
    for row in results.of("student", teacher="CE fitted"):
        used = runner.store.run(row.run).manifest["teachers"]["a"]["temperature"]
        assert used == teacher.scores["temperature"] != 1
    stopped = [runner.store.run(row.run).manifest for row in results.of("student", teacher="CE stopped")]
    assert all(manifest["teachers"]["a"]["checkpoint"] == "best" for manifest in stopped)


def test_distances_are_means_over_held_out_annotators(finished):
    study, runner, results = finished
    (row,) = results.of("teacher", teacher="MSE last")
    config = ConfigDict(runner.store.run(row.run).manifest["config"])
    own, others = annotators_of(1)
    assert (own, others) == ("annotator2", ("annotator1", "annotator3"))
    stored = np.load(config.data.args.path)
    data = load_dataset(config.data, "")
    train = data.splits["train"]
    np.testing.assert_array_equal(data.labels[train], stored[own][train])
    student = ConfigDict(runner.store.run(results.of("student")[0].run).manifest["config"])
    loaded = load_run(runner.store, row.run, "last", "")
    found = {name: [] for name in (own, *others)}
    for visit in range(4):
        shown = {"view": "crop_flip", "seed": student.seed, "visit": visit}
        p = analysis.softmax(predict(loaded.network, data, "train", 40, loaded.devices, **shown).logits)
        for name, values in found.items():
            values.append(np.mean(np.sum((p - np.eye(4)[stored[name][train]]) ** 2, axis=1)))
    held_out = np.mean([found[name] for name in others])
    assert row.scores["seen"] == pytest.approx(held_out, rel=1e-5)
    assert row.scores["memorisation"] == pytest.approx(held_out - np.mean(found[own]), abs=1e-5)
    used = np.concatenate(list(data.splits.values()))
    unseen = np.setdiff1d(np.arange(200), used)
    assert len(unseen) == 80
    outputs = predict_run(runner.store, row.run, "test", data_dir="")
    soft = stored["test_soft"]
    assert row.scores["test_distance"] == pytest.approx(
        np.mean(np.sum((analysis.softmax(outputs.logits) - soft) ** 2, axis=1)), rel=1e-5
    )
    assert row.scores["accuracy"] == pytest.approx(analysis.accuracy(outputs.logits, outputs.labels))
    np.testing.assert_array_equal(unpack(row.correct, 100), np.argmax(outputs.logits, axis=1) == outputs.labels)
    assert sum(count for count, *_ in row.bins) == 2 * len(unseen)


def test_finished_seeds_are_not_trained_again_when_the_store_is_lost(finished, tmp_path):
    study, runner, results = finished
    published = tmp_path / "published.json"
    published.write_text((runner.store.root / "results.json").read_text())
    counter = RunCounter()
    again = dataclasses.replace(study, results=str(published))
    assert again.run(Runner(Store(tmp_path / "lost"), "", counter)) == load(published) and counter.total == 0
    assert len(load(published).rows) == len(results.rows)
    assert dumps(load(published), study.hash) == published.read_text()
    text = again.report(load(published))
    assert "Verdict" in text and "MSE last − CE fitted" in text and study.design in text
    other = dataclasses.replace(again, margin=2.0)
    with pytest.raises(UserError, match="of another design of this study"):
        other.run(Runner(Store(tmp_path / "lost"), "", counter))


def test_a_gate_that_is_not_passed_changes_the_setting_of_every_run(tmp_path):
    config = human(tmp_path)
    config.gates = ({**config.gates[0], "least": 9.0, "train": 40, "epochs": 1},)
    config.teachers = {name: config.teachers[name] for name in ("CE last", "MSE last")}
    config.baselines, config.methods = ("CE last",), {"KD, T = 1": config.methods["KD, T = 1"]}
    config.scored = ("KD, T = 1",)
    study, store = read_study(config), Store(tmp_path / "runs")
    results = study.run(Runner(store, ""))
    assert not results.choices["gate"]["passed"]
    sizes = {row.run: store.run(row.run).manifest["splits"]["train"]["size"] for row in results.rows}
    assert sorted(size for run, size in sizes.items() if run.startswith("pilot")) == [40] * 6 + [80] * 6
    assert {size for run, size in sizes.items() if not run.startswith("pilot")} == {40}
    assert {store.run(run).manifest["config"]["epochs"] for run, size in sizes.items() if size == 40} == {1}


def test_the_distance_to_draws_is_that_to_the_posterior_and_a_floor():
    draw = np.random.default_rng(0)
    posterior, logits = draw.dirichlet(np.ones(3), 5), draw.normal(size=(2, 5, 3))
    draws = np.stack([draw.choice(3, 200_000, p=p) for p in posterior])
    mean = np.stack([np.bincount(each, minlength=3) for each in draws]) / draws.shape[1]
    floor = np.mean(1 - np.sum(posterior**2, axis=1))
    for z in logits:
        assert distance(z, mean, True) == pytest.approx(distance(z, posterior, False) + floor, abs=5e-3)
        each = [distance(z, np.eye(3)[draws[:, i]], True) for i in range(50)]
        assert np.mean(each) == pytest.approx(distance(z, np.eye(3)[draws[:, :50]].mean(axis=1), True))


def test_the_rule():
    def contrasts(*bounds, diverged=False):
        names = ("last", "stopped", "fitted")
        return [Contrast(n, Interval(np.mean(b), *b, 6), diverged) for n, b in zip(names, bounds, strict=False)]

    near = contrasts((-3, -1), (-3, -1), (-3, -1))
    better = contrasts((0.1, 3), (0.2, 3), (0.3, 3))
    assert verdict(near, better, 1.0) == "holds"
    assert verdict(near, contrasts((0.1, 3), (-0.2, 3), (0.3, 3)), 1.0) == "only against plain CE"
    assert verdict(contrasts((-3, -1), (1, 2), (-3, -1)), better, 1.0) == "only against plain CE"
    assert verdict(near, contrasts((-0.1, 3), (-3, -0.2), (0.3, 3)), 1.0) == "does not hold"
    assert verdict(near, contrasts((-0.9, 0.9), (-0.9, 0.9), (-0.9, 0.9)), 1.0) == "does not hold"
    assert verdict(near, contrasts((-0.9, 0.9), (-0.9, 0.9), (-0.9, 1.1)), 1.0) == "cannot tell"
    assert verdict(near, contrasts((0.1, 3), (0.2, 3), (0.3, 3), diverged=True), 1.0) == "cannot tell"
    assert verdict((), better[:1], 1.0) == "holds"
    assert verdict((), contrasts((-3, -1)), 1.0) == "does not hold"


def test_a_design_is_what_differs_from_the_defaults():
    study = which_teacher.get_config("smoke")
    fields = {"student": study.student, "seeds": (1, 2)}
    same = {"student": study.student.copy_and_resolve_references(), "seeds": [1, 2]}
    assert design_of(fields) == design_of(same)
    same["student"].new_field_at_its_default = 0
    del same["student"]["score_train"]  # a field that another version has at its default
    assert design_of(fields) != design_of(same)
    del same["student"]["new_field_at_its_default"]
    assert design_of(fields) == design_of(same)
    same["student"].optimizer.learning_rate = 0.3
    assert design_of(fields) != design_of(same)


def test_every_design_is_read_and_those_that_have_begun_stay_as_they_are():
    """A change of the hash would refuse the results that the study has; another design needs another argument."""
    begun = {
        "human": "67381a1d8acb3ba16617b7585fd0faa9cdc9a1dd4631b67e18d633bd61bfb03a",
        "digits": "f026d2f79cf11d441b537d4d155bc003e93d9cefd8139243355011345e0c14a5",
        "gaussian": "312f931974074c088fa86263231853193880dd6e00c041f3ca69b45d3e08a31c",
    }
    for name in which_teacher.STUDIES:
        study = read_study(which_teacher.get_config(name))
        assert begun.get(name, study.hash) == study.hash
        for config in (*(kind.config for kind in study.runs.values()), study.student, *study.controls.values()):
            check(config)


def test_packed_bits_are_unpacked():
    for size in (1, 8, 13):
        correct = np.random.default_rng(size).random(size) < 0.5
        np.testing.assert_array_equal(unpack(json.loads(json.dumps(pack(correct))), size), correct)


def test_what_a_study_of_teachers_refuses():
    for changed, words in (
        ({"pilot": (0,)}, "not with \\[0\\] in both"),
        ({"challenger": "MSE lost"}, "unknown name 'MSE lost'. Did you mean 'MSE last'"),
        ({"data": "people"}, "config.data: unknown name 'people'"),
    ):
        study = which_teacher.get_config("smoke")
        study.update(changed)
        with pytest.raises(UserError, match=words):
            read_study(study)


def test_equal_differences_are_no_interval_in_the_table_of_contrasts():
    from kdjax.reporting.statistics import Interval
    from kdjax.studies.which_teacher_report import _words

    class Equal:
        interval, diverged = Interval(-4.69, -4.69, -4.69, 2), False

    assert _words(Equal, 2) == "-4.69 (cannot tell: all 2 differences are equal)"

"""Generations: every student learns from the one before it, and a study that was stopped anywhere ends the same."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import flax.linen as nn
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import tolerant_generations
from kdjax.errors import UserError
from kdjax.inspection import linear_probe as transfer
from kdjax.inspection.linear_probe import STRENGTHS, probe
from kdjax.inspection.predict import predict_run
from kdjax.reporting.statistics import t_interval
from kdjax.store import Store
from kdjax.studies import generations
from kdjax.studies.kinds import read_study
from kdjax.studies.runner import Job, Runner
from kdjax.training.loop import train

ROOT = pathlib.Path(__file__).parents[2]


class LogitsAlone(nn.Module):
    """A user's network without a pooled vector, so that it cannot be probed."""

    num_classes: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.num_classes)(x)


def small(**changed) -> ConfigDict:
    study = tolerant_generations.get_config("smoke")
    study.generations, study.label_weights, study.members, study.longest = 2, (0.6, 0.8), 2, 2
    study.update(changed)
    return study


def run_study(config: ConfigDict, store: Store) -> generations.GenerationsOutcome:
    return read_study(config).run(Runner(store, ""))


def make_jobs(config: ConfigDict) -> list[Job]:
    return [job for stage in generations.make_stages(read_study(config)) for job in stage]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("runs"))
    study = small()
    study.transfer = {"itself": study.alone.data}
    return study, run_study(study, store), store


def test_every_student_learns_from_the_generation_before():
    study = tolerant_generations.get_config()
    jobs = make_jobs(study)
    assert len({job.name for job in jobs}) == len(jobs) == 5 * (5 * 4 + 3 + 3)
    seen = set()
    for job in jobs:
        teachers = [teacher.run for teacher in job.config.teachers.values()]
        if job.key.row in study.chains and job.key.m:
            assert teachers == [job.name.replace(f"gen{job.key.m}", f"gen{job.key.m - 1}")]
            assert teachers[0] in seen
        else:
            assert not teachers
        seen.add(job.name)


def test_a_set_that_is_a_path_is_called_by_its_last_part():
    study = small()
    study.alone.data.name = "folder:/home/me/.cache/my birds/"
    assert "my_birds/mlp-alone-x1-s0" in {job.name for job in make_jobs(study)}


def test_every_number_is_within_reach_of_a_flag():
    study = tolerant_generations.get_config()
    assert len(study.chains) == 5 and all(chain.isidentifier() for chain in study.chains)


def test_weights_follow_the_schedule_and_sum_to_one():
    study = small(label_weights=(0.3, 0.9))
    for job in make_jobs(study):
        if job.key.row == "tolerant" and job.key.m:
            weight = study.label_weights[job.key.m - 1]
            assert job.config.losses.cross_entropy.weight == pytest.approx(weight)
            assert job.config.losses.kd.weight == pytest.approx(1 - weight)
            assert job.config.losses.kd.temperature == 1.0  # KL without temperature


def test_controls_are_longer_and_independent():
    jobs = make_jobs(small())
    longer = [job for job in jobs if job.key.row == generations.LONGER]
    assert [job.config.epochs for job in longer] == [2, 4]
    members = [job for job in jobs if job.key.row == generations.INDEPENDENT]
    assert len({job.config.seed for job in members}) == 2 and len({job.config.epochs for job in members}) == 1


def test_ensembles_are_mean_probabilities(trained):
    study, outcome, store = trained
    first = outcome.accuracy["tolerant", 1, 0].last
    assert outcome.ensembles["tolerant", 1, 0] == pytest.approx(first)
    total, labels = 0, None
    for job in make_jobs(study):
        if job.key.row == "tolerant" and job.key.m:
            outputs = predict_run(store, job.name, "test")
            e = np.exp(outputs.logits - outputs.logits.max(axis=1, keepdims=True))
            total, labels = total + e / e.sum(axis=1, keepdims=True), outputs.labels
    assert outcome.ensembles["tolerant", 2, 0] == pytest.approx(np.mean(total.argmax(axis=1) == labels))


def test_the_reported_generation_is_fixed_or_chosen_on_validation_alone(trained):
    study, outcome, _ = trained
    validation = [outcome.accuracy["tolerant", m, 0].validation for m in (1, 2)]
    assert outcome.chosen == {"tolerant": 1 + int(np.argmax(validation))}
    worse = {key: scores._replace(last=0.0, best=0.0) for key, scores in outcome.accuracy.items()}
    assert generations._reported(read_study(study), worse, "tolerant") == outcome.chosen["tolerant"]
    study = small(report="2")
    assert generations._reported(read_study(study), worse, "tolerant") == 2
    text = read_study(study).report(outcome)
    assert "trained m times as long" in read_study(study).figures(outcome)[0].svg
    assert "fixed beforehand" in text and "trained m times as long" in text and "Linear probe" in text


def test_what_features_gain_is_paired_by_seed(trained):
    study, outcome, _ = trained
    probes = {("other", chain, m, seed): 0.1 * seed + (0.02 + 0.001 * seed) * m + (0.01 if chain == "born_again" else 0)
              for chain in ("tolerant", "born_again") for m in range(3) for seed in range(3)}  # fmt: skip
    changed = outcome._replace(transfer=probes, chosen={"tolerant": 2, "born_again": 1}, accuracy={})
    text = read_study(study).report(changed)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    for chain, m in (("tolerant", 2), ("born_again", 1)):
        mean, low, high, _ = t_interval([2.0 * m, 2.1 * m, 2.2 * m])
        gain = f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"
        assert f"| {chain}, m = {m} | generation 0 of {chain} | {gain} |" in lines
    equal = "-1.00 (cannot tell: all 3 differences are equal)"
    assert f"| tolerant, m = 2 | generation 2 of born_again | {equal} |" in lines


def test_a_probe_is_logistic_regression_on_pooled_features(trained):
    from sklearn.linear_model import LogisticRegression

    study, outcome, store = trained
    run = next(job.name for job in make_jobs(study) if job.key == ("tolerant", 1, 0))
    parts = {s: predict_run(store, run, s, features=True) for s in ("train", "validation", "test")}
    mean, std = parts["train"].pooled.mean(axis=0), parts["train"].pooled.std(axis=0) + 1e-6
    scores = []
    for strength in STRENGTHS:
        x = {s: (p.pooled.astype(np.float64) - mean) / std for s, p in parts.items()}
        model = LogisticRegression(C=strength, max_iter=2000).fit(x["train"], parts["train"].labels)
        scores.append([model.score(x[s], parts[s].labels) for s in ("validation", "test")])
    best = max(scores, key=lambda score: score[0])
    assert probe(store, run, study.alone.data) == pytest.approx(best[1], abs=0.02)
    assert outcome.transfer["itself", "tolerant", 1, 0] == pytest.approx(best[1], abs=0.02)


def test_features_of_digits_are_probed_on_two_other_sets(tmp_path):
    study, store = tolerant_generations.get_config(), Store(tmp_path)
    assert len(study.transfer) == 2 and study.alone.data.name not in {data.name for data in study.transfer.values()}
    generations._check_data(read_study(study), "")
    study.alone.epochs = 1
    train(study.alone, store, name="one", show=False)
    for data, chance in zip(study.transfer.values(), (1 / 26, 1 / 10), strict=True):
        assert probe(store, "one", data) > 2 * chance


def test_a_probe_takes_one_thread(monkeypatch):
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_info

    seen = []
    fit = LogisticRegression.fit
    monkeypatch.setattr(LogisticRegression, "fit", lambda *args: seen.extend(threadpool_info()) or fit(*args))
    transfer._fit(np.eye(4), np.array([0, 1, 0, 1]), 1.0)
    assert seen and {pool["num_threads"] for pool in seen} == {1}


def test_a_set_of_another_shape_is_refused_in_one_line(trained):
    study, _, store = trained
    data = ConfigDict(study.alone.data.to_dict())
    data.name, data.args = "digits", {}
    with pytest.raises(UserError, match="cannot take the images of data set 'digits'"):
        probe(store, make_jobs(study)[0].name, data)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("label_weights", (0.6,), "2 numbers in"),
        ("label_weights", (0.6, 1.5), "2 numbers in"),
        ("report", "test", "'validation' or a generation up to '2'"),
        ("report", "3", "up to '2'"),
        ("seeds", 0, "at least 1"),
        ("sedes", 1, "Did you mean 'seeds'"),
        ("label_weights", ("0.6", 0.8), r"config.label_weights\[0\] must be a number, not '0.6'"),
        ("longest", 1, "config.longest must be at least 2, a generation that may be reported, or 0"),
        ("members", -1, "config.members must be at least 2"),
    ],
)
def test_a_wrong_study_is_refused(field, value, words):
    study = small()
    with study.unlocked():
        study[field] = value
    with pytest.raises(UserError, match=words):
        make_jobs(study)


def test_controls_may_be_left_out_or_end_with_the_generation_that_is_reported():
    rows = [job.key.row for job in make_jobs(small(longest=0, members=0))]
    assert set(rows) == {"tolerant"}
    jobs = make_jobs(small(report="1", longest=1, members=1))
    assert [job.key.m for job in jobs if job.key.row != "tolerant"] == [1, 1]


def test_a_longer_training_warms_up_longer():
    study = small()
    study.alone.schedule.warmup_epochs = 1
    longer = [job for job in make_jobs(study) if job.key.row == generations.LONGER]
    assert [job.config.schedule.warmup_epochs for job in longer] == [1, 2]


def with_chain(change) -> ConfigDict:
    study = small()
    with study.unlocked():
        change(study, study.chains.tolerant)
    return study


def fitted_in_logit_space(study, chain) -> None:
    chain.patriarch.losses = {"softmax_mse": {"weight": 1.0, "space": "logits"}}


def with_a_teacher(study, chain) -> None:
    chain.patriarch.teachers = {"a": {"run": "gaussian/wise"}}


def second_name(study, chain) -> None:
    study.chains["toler ant"], study.chains["toler_ant"] = chain, chain


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda study, chain: chain.student.losses.__delattr__("cross_entropy"),
            "student.losses must have 'cross_entropy'",
        ),
        (lambda study, chain: chain.student.losses.kd.update(weight=0.0), "whose weights are numbers above 0"),
        (lambda study, chain: chain.student.teachers.update(a={"run": "x"}), "student.teachers must be empty"),
        (lambda study, chain: chain.__delattr__("patriarch"), "config.chains.tolerant.patriarch is missing"),
        (
            lambda study, chain: chain.student.update(epochs=0),
            "chains.tolerant.student: config.epochs must be at least",
        ),
        (fitted_in_logit_space, "patriarch.losses.softmax_mse.space must be 'probs'"),
        (lambda study, chain: study.alone.update(epochs=0), "config.alone: config.epochs must be at least 1"),
        (lambda study, chain: study.chains.update({generations.LONGER: chain}), "choose another"),
        (lambda study, chain: study.chains.__delattr__("tolerant"), "config.chains is empty"),
        (second_name, "two runs of the study would be called 'gaussian/mlp-toler_ant-gen0-s0'"),
    ],
)
def test_a_chain_that_is_not_whole_is_refused(change, words):
    with pytest.raises(UserError, match=words):
        make_jobs(with_chain(change))


def without_validation(study, chain) -> None:
    for part in (chain.patriarch, chain.student):
        part.data.validation = 0.0


def mistyped_probe(study, chain) -> None:
    study.transfer = {"other": {**study.alone.data.to_dict(), "sise": 3}}


def probe_of_images(study, chain) -> None:
    study.transfer = {"other": {**study.alone.data.to_dict(), "name": "digits", "args": {}}}


def with_fewer_labels(study, chain) -> None:
    chain.student.data.protocols = {"labelled_fraction": {"fraction": 0.5}}


def with_a_wrong_warm_up(study, chain) -> None:
    chain.student.losses.tolerant = {"weight": 0.0, "num_top": 7}
    chain.student.warmup.update(epochs=1, losses={"tolerant": 1.0})


def without_pooled(study, chain) -> None:
    study.transfer = {"other": study.alone.data}
    chain.student.model.name, chain.student.model.args = f"{__name__}:LogitsAlone", {}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda study, chain: chain.student.losses.kd.update(temperature=0.0),
            "gen1-s0': config.losses.kd: temperature",
        ),
        (lambda study, chain: chain.student.losses.update(kdd={"weight": 1.0}), "unknown loss 'kdd'"),
        (lambda study, chain: study.chains.update({"tolérant": chain}), "is not a valid name of a run"),
        (without_validation, "config.chains.tolerant.patriarch.data: data set 'gaussian' has no validation split"),
        (mistyped_probe, "config.transfer.other: config.data has no field 'sise'"),
        (lambda study, chain: chain.student.data.update(name="gausian"), "unknown data set 'gausian'"),
        (probe_of_images, "config.transfer.other: the networks of config.chains.tolerant.patriarch take 8, not 8x8x1"),
        (
            lambda study, chain: chain.student.model.update(name="resnet8"),
            "gen1-s0': config.model.args: model 'resnet8' takes no",
        ),
        (lambda study, chain: chain.student.update(batch_size=1000), "gen1-s0': config.batch_size = 1000 is more"),
        (lambda study, chain: study.alone.data.update(view="crop"), "alone-x1-s0': config.data.view 'crop'"),
        (lambda study, chain: chain.patriarch.losses.tolerant.update(num_top=7), "gen0-s0': config.losses.tolerant: "),
        (lambda study, chain: chain.patriarch.data.args.update(dim=9), "gen1-s0': teacher 'a' cannot see images of 8"),
        (with_a_wrong_warm_up, "gen1-s0': config.losses.tolerant: "),
        (with_a_teacher, "gen0-s0': teacher 'a': .* has no run 'gaussian/wise'"),
        (with_fewer_labels, "gen1-s0': teacher 'a' was trained on 126 labels that the student does not have"),
        (without_pooled, "LogitsAlone' has no pooled vector, which config.transfer needs"),
    ],
)
def test_a_mistake_anywhere_is_found_before_anything_is_trained(tmp_path, change, words):
    with pytest.raises(UserError, match=words):
        run_study(with_chain(change), Store(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_study_that_was_changed_is_refused_before_anything_is_trained(tmp_path, trained):
    study, _, store = trained
    changed = ConfigDict(study.to_dict())
    changed.seeds, changed.alone.epochs = 2, 3  # the second seed is new
    runs = store.runs()
    with pytest.raises(UserError, match="alone-x1-s0' exists with another config .config.epochs: 2 -> 3"):
        run_study(changed, store)
    assert store.runs() == runs


def write_patterns(path: pathlib.Path, classes: int, side: int) -> dict:
    """Writes noisy images with one pattern per class, and returns a `config.data` that resizes them to 8x8."""
    draw = np.random.default_rng(classes)
    patterns = np.kron(draw.integers(40, 216, (classes, 2, 2, 1)), np.ones((1, side // 2, side // 2, 1)))
    labels = np.arange(240) % classes
    images = patterns[labels] + draw.integers(-8, 8, (240, side, side, 1))
    np.savez(path, images=images.astype(np.uint8), labels=labels)
    return {**small().alone.data.to_dict(), "name": "arrays", "args": {"path": str(path)}, "size": 8}


@pytest.mark.slow
def test_features_of_another_network_carry_to_sets_of_other_classes_and_sizes(tmp_path):
    study = small(longest=0, members=0, report="1")
    chain = study.chains.tolerant
    for part in (chain.patriarch, chain.student, study.alone):
        part.data = write_patterns(tmp_path / "own.npz", 3, 8)
    chain.patriarch.losses.tolerant.num_top = 3
    chain.student.model.name, chain.student.model.args = "resnet8", {"widths": (4, 4, 6, 8)}
    study.transfer = {
        "five": write_patterns(tmp_path / "five.npz", 5, 12),
        "two": write_patterns(tmp_path / "two.npz", 2, 16),
    }
    store = Store(tmp_path / "runs")
    outcome = run_study(study, store)
    networks = ("mlp-tolerant-gen0", "resnet8-tolerant-gen1", "resnet8-tolerant-gen2")
    assert store.runs() == [f"arrays/{name}-s0" for name in networks]
    assert set(outcome.transfer) == {(name, "tolerant", m, 0) for name in ("five", "two") for m in (0, 1, 2)}
    assert min(outcome.transfer.values()) > 0.9
    assert "five" in read_study(study).report(outcome)


TWO_GENERATIONS = """from configs import tolerant_generations


def get_config():
    study = tolerant_generations.get_config("smoke")
    study.report, study.longest, study.members = "1", 0, 0
    study.transfer = {"itself": study.alone.data}
    for part in study.chains.tolerant.values():
        part.checkpoint.every_epochs = 1
    return study
"""


def stopped(folder: pathlib.Path, signals: str) -> tuple[Store, list]:
    """Returns the store of a study that was stopped at every possible place, and how each of its processes ended."""
    (folder / "study.py").write_text(TWO_GENERATIONS)
    line = [sys.executable, str(pathlib.Path(__file__).parent / "killed.py"), str(folder / "study.py")]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    for name in ("JAX_NUM_CPU_DEVICES", "NPROC"):
        env.pop(name, None)
    command = [*line, str(folder / "runs"), signals]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600, check=True)
    return Store(folder / "runs"), json.loads(done.stdout)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Store:
    store, ended = stopped(tmp_path_factory.mktemp("unbroken"), "")
    assert [code for _, code, _ in ended] == [0]
    return store


def without_times(found: dict) -> dict:
    return {key: value for key, value in found.items() if key not in ("seconds", "images_per_second")}


@pytest.mark.slow
@pytest.mark.parametrize("signals", ["SIGKILL", "SIGTERM,SIGINT"])
def test_killed_at_any_boundary_the_same_command_ends_as_an_unbroken_one(tmp_path, unbroken, signals):
    store, ended = stopped(tmp_path, signals)
    numbers = [getattr(signal, name) for name in signals.split(",")]
    codes = [-number if number == signal.SIGKILL else 128 + number for number in numbers]
    assert [code for _, code, _ in ended] == [*(codes[i % len(codes)] for i in range(len(ended) - 1)), 0]
    told = ("was saved at step", "is finished", "stopped at once, without saving")
    assert signals == "SIGKILL" or all(any(words in last for words in told) for _, _, (last,) in ended[:-1])
    places = [place for reached, *_ in ended for place in reached]
    # Inside an epoch, between epochs, between runs, and while they are scored.
    for place in ("begin", "_dispatch", "predict_run", "probe", "write_atomic", "write_text"):
        assert any(reached.startswith(f"{place} ") for reached in places), place
    assert signals != "SIGKILL" or sum(reached.startswith(("save ", "write_result ")) for reached in places) == 4
    assert (store.root / "report.md").read_text() == (unbroken.root / "report.md").read_text()
    assert store.runs() == unbroken.runs() and len(store.runs()) == 2
    for name in store.runs():
        a, b = store.find(name), unbroken.find(name)
        assert without_times(a.result) == without_times(b.result)
        assert list(map(without_times, a.metrics())) == list(map(without_times, b.metrics()))
        jax.tree.map(np.testing.assert_array_equal, a.restore_variables("last")[0], b.restore_variables("last")[0])

"""The posterior study in its smoke form: p* is a teacher without distance, rows are paired by teacher seed, and
settings are chosen on seeds that are not reported."""

import numpy as np
import pytest

from configs.studies import gaussian_posterior
from kdjax.config import defaults
from kdjax.data import load_dataset
from kdjax.data.sources import gaussian_oracle
from kdjax.errors import UserError
from kdjax.reporting.statistics import t_interval
from kdjax.store import Store
from kdjax.studies import posterior
from kdjax.studies.kinds import read_study
from kdjax.studies.runner import RunCounter, Runner


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    study = read_study(gaussian_posterior.get_config("smoke"))
    counter, store = RunCounter(), Store(tmp_path_factory.mktemp("runs"))
    return study, study.run(Runner(store, "", counter)), counter, store


def test_the_linear_classifier_of_the_mixture_is_its_posterior():
    config = defaults()
    config.data.name, config.data.args = "gaussian", {"n_train": 50, "n_test": 500, "delta": 1.5, "seed": 4}
    data = load_dataset(config.data, "")
    weight, bias = gaussian_oracle(**config.data.args.to_dict())
    logits = data.images.astype(np.float64) @ weight.T + bias
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(p / p.sum(axis=1, keepdims=True), data.soft, atol=1e-12)


def test_p_star_is_a_teacher_without_distance(outcome):
    study, found, _, _ = outcome
    oracle = next(teacher for teacher in found.teachers if teacher.kind == posterior.ORACLE)
    assert oracle.distance < 1e-9 and oracle.accuracy == pytest.approx(found.bayes, abs=2e-3)


def test_every_teacher_has_its_students_and_choosing_seeds_are_not_reported(outcome):
    study, found, counter, store = outcome
    kinds = {teacher.kind for teacher in found.teachers}
    assert len(kinds) == 7 and {teacher.seed for teacher in found.teachers} == {0}
    assert {(s.method, s.kind) for s in found.students} == {("KD", kind) for kind in kinds} | {("alone", "")}
    names = counter.finished
    assert len(names) == counter.total and set(names) | {posterior.ORACLE_RUN} == set(store.runs())
    assert any("-s100" in name for name in names)


def test_the_same_study_again_trains_nothing_and_says_the_same(outcome, monkeypatch):
    study, found, _, store = outcome
    monkeypatch.setattr("kdjax.training.trainer.Trainer.fit", None)
    assert study.run(Runner(store, "")) == found
    text = study.report(found)
    assert f"| (Bayes accuracy) | {100 * found.bayes:.2f}" in " ".join(text.split())
    assert "| p* " in text and "(student alone)" in text
    for figure in study.figures(found):
        assert "Bayes accuracy" in figure.svg
        assert figure.name.startswith("distance-") and "squared distance to p*" in figure.svg and ">p*<" in figure.svg


def test_differences_pair_teachers_of_one_seed():
    first, second = "MSE, stopped", "CE, stopped"
    teachers = [posterior.PosteriorTeacher(kind, seed, "", "last", 1.0, 0.5, 0.1 * seed + shift * (1 + 0.1 * seed), 1.0)
                for kind, shift in ((second, 0.0), (first, 0.05)) for seed in range(3)]  # fmt: skip
    students = [posterior.PosteriorStudent("KD", kind, seed, s, 0.5 + 0.1 * seed + shift * (1 + 0.1 * seed) + 0.01 * s)
                for kind, shift in ((second, 0.0), (first, 0.02)) for seed in range(3) for s in range(2)]  # fmt: skip
    study = gaussian_posterior.get_config("smoke")
    study.contrasts, study.methods = ((first, second),), {"KD": {}}
    study.alone = ()
    text = read_study(study).report(posterior.PosteriorOutcome(0.9, {}, {}, teachers, students))
    mean, low, high, _ = t_interval([2.0, 2.2, 2.4])
    gain = f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"
    nearer = "{:+.4f} [{:+.4f}, {:+.4f}]".format(*(0.025 * value for value in (mean, low, high)))
    assert f"| {first} − {second} | {nearer} | {gain} |" in text


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("contrasts", (("MSE, stoped", "CE, stopped"),), "unknown name 'MSE, stoped'. Did you mean 'MSE, stopped'"),
        ("alone", ("KDD",), "config.alone: unknown name 'KDD'. Did you mean 'KD'"),
        ("rates", {"cross_entropy": (0.1,), "softmax_mse": ()}, "at least one rate"),
        ("rates", {"cross_entropy": (0.1,), "softmax": (0.1,)}, "no field 'softmax'. Did you mean 'softmax_mse'"),
        ("student_seeds", 0, "config.student_seeds must be at least 1"),
    ],
)
def test_a_wrong_study_is_refused(field, value, words):
    study = gaussian_posterior.get_config("smoke")
    study[field] = value
    with pytest.raises(UserError, match=words):
        read_study(study)


def test_seeds_that_choose_may_not_be_reported(tmp_path):
    study = gaussian_posterior.get_config("smoke")
    study.seeds = 101
    with pytest.raises(UserError, match="seed 100 would both choose a setting and be reported"):
        read_study(study).run(Runner(Store(tmp_path), ""))
    assert not list(tmp_path.iterdir())

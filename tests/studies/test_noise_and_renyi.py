"""The studies of noise and of the Rényi entropy in their smoke forms, and their tables from known numbers."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from configs.studies import noise, renyi
from kdjax.config import check
from kdjax.inspection.analyze import analyze
from kdjax.store import Store
from kdjax.studies import renyi as renyi_study
from kdjax.studies.kinds import read_study, write_report
from kdjax.studies.noise import spearman_interval
from kdjax.studies.runner import RunCounter, Runner


def test_targets_of_labels_are_as_far_as_epsilon_squared_says(tmp_path):
    study = noise.get_config("smoke")
    study.mixes.labels = (0.5, 1.0)
    read, counter = read_study(study), RunCounter()
    outcome = read.run(Runner(Store(tmp_path), "data", counter))
    assert counter.total == len(counter.finished) == len(Store(tmp_path).runs()) == 6
    students = {(student.other, student.epsilon): student for student in outcome.students}
    assert len(students) == 3 and len({student.seed for student in outcome.students}) == 3
    ratio = students["labels", 0.5].target_distance / students["labels", 1.0].target_distance
    assert ratio == pytest.approx(0.25, rel=1e-6)
    # Students learnt from labels; they are measured by the data's own p*, on the training split too.
    name = [name for name in Store(tmp_path).runs() if "labels-1-" in name][0]
    assert analyze(Store(tmp_path), [name], ["posterior"], split="train")["posterior"][0]["posterior_entropy"] > 0.5
    assert 0 < outcome.bayes < 1 and "| labels" in read.report(outcome)
    assert all("p* mixed with labels" in figure.svg for figure in read.figures(outcome))


def test_spearmans_interval_holds_its_value():
    draw = np.random.default_rng(0)
    xs = draw.normal(size=60)
    ys = -xs + draw.normal(size=60)
    value, low, high = (float(word.strip("[],")) for word in spearman_interval(xs, ys).split())
    assert value == pytest.approx(spearmanr(xs, ys).statistic, abs=0.006) and low < value < high < 0
    assert spearman_interval([1, 2], [2, 1]) == "-"


def test_ttm_is_kd_less_the_whole_renyi_entropy(tmp_path):
    study = renyi.get_config("smoke")
    study.seeds = (0,)
    wanted = ("KD", "TTM", "KD less 100 % Renyi")
    study.losses = {name: study.losses[name] for name in wanted}
    study.contrasts = (("TTM", "KD"),)
    counter = RunCounter()
    read = read_study(study)
    found = {student.label: student for student in read.run(Runner(Store(tmp_path), "data", counter))}
    assert counter.total == len(counter.finished) == 1 + 3
    ttm, kd = found["TTM"], found["KD less 100 % Renyi"]
    assert kd.entropy == pytest.approx(ttm.entropy, rel=1e-5)
    np.testing.assert_allclose(kd.train_entropy, ttm.train_entropy, rtol=1e-5)
    np.testing.assert_allclose(kd.train_to_transformed, ttm.train_to_transformed, rtol=1e-3)
    assert abs(found["KD"].entropy - ttm.entropy) > 1e-3
    assert "TTM − KD" in read.report(list(found.values()))
    study.losses["TTM without CE"] = {"ttm": {"weight": 1.0}}
    text = write_report(read_study(study), [*found.values(), ttm._replace(label="TTM without CE")], Store(tmp_path))
    for name in ("entropy-by-epoch", "distance-by-epoch", "entropy-by-temperature", "renyi-coefficient"):
        assert f"(figures/{name}.svg)" in (tmp_path / "report.md").read_text()
        assert "[nats]" in (tmp_path / "figures" / f"{name}.svg").read_text()
    assert "with 4 figures" in text


def test_every_loss_of_the_studies_passes_the_schema():
    study = renyi.get_config()
    assert len(study.losses) == 16
    assert renyi_study._coefficient(study.losses["KD less 150 % Renyi"]) == pytest.approx(1.5)
    assert renyi_study._coefficient(study.losses["KD"]) == 0
    for first, second in study.contrasts:
        assert {first, second} <= set(study.losses)
    for terms in study.losses.values():
        config = study.student.copy_and_resolve_references()
        config.losses = terms
        check(config)
    check(noise.get_config().student)

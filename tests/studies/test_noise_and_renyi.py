"""The noise and the Rényi study in their smoke forms, and their tables from numbers that are known."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from configs.studies import noise, renyi
from kdjax.config import check
from kdjax.inspection.analyze import analyze
from kdjax.reporting import noise as noise_report
from kdjax.reporting import renyi as renyi_report
from kdjax.reporting.figures import write_report
from kdjax.store import Store
from kdjax.studies import noise as noise_study
from kdjax.studies import renyi as renyi_study


def count(total):
    seen = []
    return lambda name: seen.append(name) if len(seen) < total else pytest.fail("more runs than were said")


def test_targets_of_labels_are_as_far_as_epsilon_squared_says(tmp_path):
    study = noise.get_config("smoke")
    study.mixes.labels = (0.5, 1.0)
    outcome = noise_study.run(study, Store(tmp_path), "data", count)
    points = {(point.other, point.epsilon): point for point in outcome.points}
    assert len(points) == 3 and len({point.seed for point in outcome.points}) == 3
    ratio = points["labels", 0.5].target_distance / points["labels", 1.0].target_distance
    assert ratio == pytest.approx(0.25, rel=1e-6)
    # Students were told labels; the data's own p* is what they are measured by, on the training split too.
    name = [name for name in Store(tmp_path).runs() if "labels-1-" in name][0]
    assert analyze(Store(tmp_path), [name], ["posterior"], split="train")["posterior"][0]["posterior_entropy"] > 0.5
    assert 0 < outcome.bayes < 1 and "| labels" in noise_report.report(study, outcome)
    assert all("p* mixed with labels" in figure.svg for figure in noise_report.figures(study, outcome))


def test_spearmans_interval_holds_its_value():
    draw = np.random.default_rng(0)
    xs = draw.normal(size=60)
    ys = -xs + draw.normal(size=60)
    value, low, high = (float(word.strip("[],")) for word in noise_report.spearman(xs, ys).split())
    assert value == pytest.approx(spearmanr(xs, ys).statistic, abs=0.006) and low < value < high < 0
    assert noise_report.spearman([1, 2], [2, 1]) == "-"


def test_ttm_is_kd_less_the_whole_renyi_entropy(tmp_path):
    study = renyi.get_config("smoke")
    study.seeds = (0,)
    wanted = ("KD", "TTM", "KD less 100 % Renyi")
    study.losses = {name: study.losses[name] for name in wanted}
    study.contrasts = (("TTM", "KD"),)
    found = {student.label: student for student in renyi_study.run(study, Store(tmp_path), "data", count)}
    ttm, kd = found["TTM"], found["KD less 100 % Renyi"]
    assert kd.entropy == pytest.approx(ttm.entropy, rel=1e-5)
    np.testing.assert_allclose(kd.train_entropy, ttm.train_entropy, rtol=1e-5)
    np.testing.assert_allclose(kd.train_to_transformed, ttm.train_to_transformed, rtol=1e-3)
    assert abs(found["KD"].entropy - ttm.entropy) > 1e-3
    assert "TTM − KD" in renyi_report.report(study, list(found.values()))
    study.losses["TTM without CE"] = {"ttm": {"weight": 1.0}}
    text = write_report(renyi_report, study, [*found.values(), ttm._replace(label="TTM without CE")], Store(tmp_path))
    for name in ("entropy-by-epoch", "distance-by-epoch", "entropy-by-temperature", "renyi-coefficient"):
        assert f"(figures/{name}.svg)" in (tmp_path / "report.md").read_text()
        assert "[nats]" in (tmp_path / "figures" / f"{name}.svg").read_text()
    assert "with 4 figures" in text


def test_every_loss_of_the_studies_passes_the_schema():
    study = renyi.get_config()
    assert len(study.losses) == 16
    assert renyi_report._coefficient(study.losses["KD less 150 % Renyi"]) == pytest.approx(1.5)
    assert renyi_report._coefficient(study.losses["KD"]) == 0
    for first, second in study.contrasts:
        assert {first, second} <= set(study.losses)
    for terms in study.losses.values():
        config = study.student.copy_and_resolve_references()
        config.losses = terms
        check(config)
    check(noise.get_config().student)

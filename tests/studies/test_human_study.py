"""The study on human labels, with a few random images: its noise floors, and distances of seen and unseen images."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs.studies import human_posterior
from kdjax.data import load_dataset
from kdjax.errors import UserError
from kdjax.store import Store
from kdjax.studies.kinds import read_study
from kdjax.studies.runner import Runner


@pytest.fixture
def study(tmp_path) -> ConfigDict:
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 4
    images = rng.integers(0, 256, (400, 8, 8, 3)).astype(np.uint8)
    soft = rng.dirichlet(np.ones(4), 400).astype(np.float32)
    np.savez(tmp_path / "made.npz", images=images, labels=labels, soft=soft)
    study = human_posterior.get_config("smoke")
    for config in (*study.teachers.values(), *study.students.values()):
        config.data.name, config.data.args = "arrays", {"path": str(tmp_path / "made.npz"), "test": 0.5}
        config.model.name, config.model.args = "mlp", {"hidden": (8,)}
        if "tolerant" in config.losses:
            config.losses.tolerant.num_top = 3
    return study


def test_distances_are_reported_for_seen_and_unseen_images(study, tmp_path):
    study.rates = (1e-6, 0.05)
    store = Store(tmp_path / "runs")
    read = read_study(study)
    outcome = read.run(Runner(store, ""))
    for name, rate in outcome.rates.items():
        tried = [
            store.run(f"choosing/{name.lower()}-lr{r:g}").result["best"]["validation"]["accuracy"] for r in study.rates
        ]
        assert rate == study.rates[int(np.argmax(tried))]
    assert all(
        run.job.config.optimizer.learning_rate == outcome.rates[run.key.teacher]
        for run in outcome.runs
        if not run.key.student
    )
    data = load_dataset(outcome.runs[0].job.config.data, "")
    assert len(data.splits["train"]) == 80
    for split in ("train", "test"):
        p = data.soft[data.splits[split]].astype(np.float64)
        assert outcome.floors[split] == pytest.approx(np.mean((1 - (p**2).sum(axis=1)) / 50), rel=1e-5)
        assert outcome.entropies[split] == pytest.approx(np.mean(-(p * np.log(p)).sum(axis=1)), rel=1e-5)
    text = read.report(outcome)
    first = outcome.runs[0].result
    assert (
        f"| {first['last']['train']['distance']:.4f} " in text and f"| {first['last']['test']['distance']:.4f} " in text
    )
    mse, ce = (next(run.result for run in outcome.runs if run.key[:2] == ("", name)) for name in ("MSE", "CE"))
    seen = mse["last"]["train"]["distance"] - ce["last"]["train"]["distance"]
    assert f"| teacher MSE − teacher CE      | {seen:+.4f} (one draw)" in text


def test_data_without_human_labels_is_refused_before_anything_is_trained(study, tmp_path):
    for config in (*study.teachers.values(), *study.students.values()):
        config.data.name, config.data.args = "digits", {}
    with pytest.raises(UserError, match="needs a data set with label distributions"):
        read_study(study).run(Runner(Store(tmp_path / "runs"), ""))
    assert not (tmp_path / "runs").exists()

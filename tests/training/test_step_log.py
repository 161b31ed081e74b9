"""config.log_every: the losses of single steps, exact over stops, the same in a population, and without effect."""

import numpy as np
import pytest
from small_world import assert_stopped_and_resumed_is_unbroken, without_times

from kdjax.config_files import load_config
from kdjax.store import Store
from kdjax.training.loop import train, train_together


def teacher_config(root, **fields):
    """A teacher of two epochs of four steps."""
    return load_config(f"{root}/configs/mse_teacher.py:smoke", **fields)


def quiet(config, store, name, devices):
    train(config, store, name=name, devices=devices, show=False)
    return store.find(name)


def test_the_mean_of_an_epochs_steps_is_its_row_and_nothing_else_changes(root, tmp_path, one_device):
    store = Store(tmp_path)
    logged = quiet(teacher_config(root, log_every=1), store, "logged", one_device)
    plain = quiet(teacher_config(root), store, "plain", one_device)
    assert without_times(logged.metrics()) == without_times(plain.metrics()) and plain.logged_steps() == []
    rows, epochs = logged.logged_steps(), logged.metrics()
    assert [row["step"] for row in rows] == list(range(1, epochs[-1]["step"] + 1))
    steps = epochs[0]["step"]
    for number, epoch in enumerate(epochs):
        for name in ("loss", "losses/softmax_mse"):
            values = [row[name] for row in rows[number * steps : (number + 1) * steps]]
            assert len(set(values)) > 1 and np.mean(values) == pytest.approx(epoch["train"][name], rel=1e-6)


@pytest.mark.parametrize("dispatches", [1, 2])
def test_a_stopped_run_logs_what_the_unbroken_one_does(root, tmp_path, one_device, monkeypatch, dispatches):
    monkeypatch.setattr("kdjax.training.trainer.MOST_STEPS_A_DISPATCH", 2)
    store, config = Store(tmp_path), teacher_config(root, log_every=3)
    assert_stopped_and_resumed_is_unbroken(config, store, one_device, dispatches, monkeypatch)
    unbroken, broken = (store.find(name).logged_steps() for name in ("unbroken", "broken"))
    assert unbroken == broken and [row["step"] for row in unbroken] == list(range(3, unbroken[-1]["step"] + 1, 3))


def test_rows_after_the_checkpoint_are_dropped_when_a_run_goes_on(tmp_path):
    run = Store(tmp_path).run("a")
    run.append_steps([{"step": 1, "loss": 2.0}, {"step": 2, "loss": float("nan")}])
    run.append_steps([])
    with (run.path / "steps.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')  # a process was killed here
    assert run.logged_steps() == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": None}]
    run.cut_steps(1)
    assert run.logged_steps() == [{"step": 1, "loss": 2.0}]


def test_members_of_a_population_log_what_they_log_alone(root, tmp_path, one_device):
    store = Store(tmp_path)
    configs = [teacher_config(root, log_every=2, seed=seed) for seed in (0, 1)]
    train_together(configs, store, names=["a", "b"], devices=one_device, show=False)
    alone = quiet(configs[1], store, "alone", one_device).logged_steps()
    together = [store.find(name).logged_steps() for name in ("a", "b")]
    assert store.find("a").manifest["population"]["layout"] == "vmap" and together[0] != together[1]
    for row, expected in zip(together[1], alone, strict=True):
        assert row == pytest.approx(expected, rel=1e-5)

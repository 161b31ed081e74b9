"""The loop: results, finished and resumed runs, and configs that are refused."""

import inspect
import json
import sys
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from small_world import assert_stopped_and_resumed_is_unbroken, stop_after

from configs import alone_student, ce_teacher, mse_teacher, wttm_student
from kdjax import losses
from kdjax.distillation.inputs import FROM_BATCH, FROM_TEACHER
from kdjax.errors import Interrupted, RunError, UserError
from kdjax.inspection.predict import score_run
from kdjax.store import FORMAT, Store
from kdjax.training.loop import train
from kdjax.training.plan import resolve
from kdjax.training.progress import Best, Progress
from kdjax.training.trainer import Trainer


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "runs")


def run(config, store, one_device, **kwargs):
    return train(config, store, devices=one_device, show=False, **kwargs)


def test_a_teacher_and_its_student(store, one_device):
    run(mse_teacher.get_config("smoke"), store, one_device)
    config = wttm_student.get_config("smoke")
    config.diagnostics = config.score_train = True
    result = run(config, store, one_device)
    assert set(result) == {"last", "best", "seconds"}
    assert set(result["last"]) == {"epoch", "step", "train", "validation", "test"}
    assert set(result["best"]["test"]) == {"loss", "accuracy", "brier", "top5", "distance"}  # six classes, p* known
    student = store.find("gaussian/mlp-cross_entropy+wttm-mlp-mse-smoke-s0-s0")
    assert student.manifest["format"] == FORMAT
    assert student.manifest["teachers"] == {"a": {"run": "gaussian/mlp-mse-smoke-s0", "checkpoint": "last", "step": 8}}
    assert student.manifest["splits"] == store.find("gaussian/mlp-mse-smoke-s0").manifest["splits"]
    rows = student.metrics()
    assert [row["epoch"] for row in rows] == [1, 2]
    assert {"loss", "losses/wttm", "losses/cross_entropy", "accuracy", "student_entropy", "a/wttm_weight"} <= set(
        rows[0]["train"]
    )
    assert 1 <= rows[0]["train"]["a/wttm_weight"] <= 6 ** (1 - config.losses.wttm.gamma)
    scores = score_run(store, student.name, "best", devices=one_device)
    assert scores["test"] == pytest.approx(result["best"]["test"])


def test_best_is_the_best_epoch_on_validation(store, one_device):
    config = alone_student.get_config("smoke")
    config.epochs, config.checkpoint.every_epochs = 5, 2
    result = run(config, store, one_device)
    trained = store.find(store.runs()[0])
    held_out = [row["validation"]["accuracy"] for row in trained.metrics()]
    assert result["best"]["epoch"] == 1 + int(np.argmax(held_out))
    assert set(trained.steps()) == {result["best"]["step"], result["last"]["step"]}
    assert score_run(store, trained.name, "best", devices=one_device)["validation"] == pytest.approx(
        result["best"]["validation"]
    )


def test_best_by_a_loss_on_validation_has_the_lowest(store, one_device):
    epochs = {}
    for measure, column in (("nll", "loss"), ("brier", "brier"), ("accuracy", "accuracy")):
        config = alone_student.get_config("smoke")
        config.epochs, config.optimizer.learning_rate, config.select_by = 8, 3.0, measure  # so that it overfits
        result = run(config, store, one_device, name=measure)
        held_out = [row["validation"][column] for row in store.find(measure).metrics()]
        epochs[measure] = 1 + int(np.argmax(held_out) if measure == "accuracy" else np.argmin(held_out))
        assert result["best"]["epoch"] == epochs[measure]
    assert len(set(epochs.values())) > 1


def test_progress_that_an_earlier_version_saved_is_read():
    old = {"epoch": 3, "step_in_epoch": 0, "best": {"epoch": 2, "step": 8, "accuracy": 0.5}}
    progress = Progress.from_json(old)
    assert progress == Progress(3, 0, Best(2, 8, 0.5)) and Progress.from_json(progress.to_json()) == progress
    assert Progress.from_json(Progress(1).to_json()).best is None


def test_without_a_validation_split_there_is_no_best(store, one_device):
    config = alone_student.get_config("smoke")
    config.data.validation = 0.0
    result = run(config, store, one_device)
    peak = max(row["test"]["accuracy"] for row in store.find(store.runs()[0]).metrics())
    assert "best" not in result
    assert result["max_over_epochs_on_test"]["accuracy"] == peak
    assert "not to be reported" in result["max_over_epochs_on_test"]["note"]


def test_a_finished_run_is_not_trained_again(store, one_device, monkeypatch):
    config = ce_teacher.get_config("smoke")
    result = run(config, store, one_device)
    monkeypatch.setattr(Trainer, "fit", lambda self: pytest.fail("trained twice"))
    assert run(config, store, one_device) == result


def test_a_changed_config_under_the_same_name_is_refused(store, one_device):
    config = ce_teacher.get_config("smoke")
    run(config, store, one_device, name="mine")
    config.optimizer.learning_rate = 0.02
    with pytest.raises(UserError, match=r"config\.optimizer\.learning_rate: 0\.01 -> 0\.02"):
        run(config, store, one_device, name="mine")
    config.optimizer.learning_rate = 0.01
    config.checkpoint.every_epochs = 7  # changes no number
    run(config, store, one_device, name="mine")


@pytest.mark.parametrize("dispatches", [1, 3, 4, 6])
def test_a_stopped_run_resumes_to_the_same_bits(store, one_device, monkeypatch, dispatches):
    """A signal stops the run within an epoch or at its end; a dispatch is one step here."""
    config = alone_student.get_config("smoke")
    config.epochs, config.losses.cross_entropy.label_smoothing = 3, 0.1
    monkeypatch.setattr("kdjax.training.trainer.MOST_STEPS_A_DISPATCH", 1)
    assert_stopped_and_resumed_is_unbroken(config, store, one_device, dispatches, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("num_devices", [1, 2, 4])
@pytest.mark.parametrize("dispatches", [2, 6, 9, 14])
def test_a_stopped_convolutional_run_resumes_to_the_same_bits(store, config, monkeypatch, num_devices, dispatches):
    """The run has BatchNorm, crops, flips and a teacher's loss, on several devices."""
    teacher = ConfigDict(config.to_dict())
    teacher.teachers, teacher.losses = ConfigDict(), ConfigDict({"cross_entropy": {"weight": 1.0}})
    devices = tuple(jax.local_devices()[:num_devices])
    run(teacher, store, devices, name=config.teachers.a.run)
    assert_stopped_and_resumed_is_unbroken(config, store, devices, dispatches, monkeypatch)


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_good_checkpoint(store, one_device, monkeypatch):
    config = alone_student.get_config("smoke")
    config.epochs, config.checkpoint.every_epochs = 4, 1
    module = types.ModuleType("tests_own_weight")
    module.blow_up = lambda epoch, *, after: jnp.where(epoch >= after, jnp.inf, 1.0)
    monkeypatch.setitem(sys.modules, "tests_own_weight", module)
    config.losses = {"cross_entropy": {"weight": {"schedule": "tests_own_weight:blow_up", "after": 2}}}
    with pytest.raises(RunError, match="not finite at step 8; .*checkpoint of step 8 is kept"):
        run(config, store, one_device)
    trained = store.find(store.runs()[0])
    assert trained.result is None and max(trained.steps()) == 8


def test_a_missing_teacher_is_answered_with_the_command_that_makes_it(store, one_device):
    with pytest.raises(UserError, match=r"python -m kdjax\.train_teacher --config=configs/mse_teacher\.py:smoke"):
        run(wttm_student.get_config("smoke"), store, one_device)


def test_a_teacher_with_other_classes_is_refused_where_its_logits_are_read(store, one_device):
    teacher = ce_teacher.get_config("smoke")
    teacher.data.args["classes"] = 5
    run(teacher, store, one_device, name="five")
    config = wttm_student.get_config("smoke")
    config.teachers.a.run = "five"
    with pytest.raises(UserError, match="has 5 classes while the data has 6"):
        run(config, store, one_device)


def test_a_teacher_that_saw_the_validation_images_is_refused(store, one_device, caplog):
    teacher = ce_teacher.get_config("smoke")
    teacher.data.split_seed = 3
    run(teacher, store, one_device, name="other-split")
    config = wttm_student.get_config("smoke")
    config.teachers.a.run = "other-split"
    with pytest.raises(UserError, match="of the 64 validation images"):
        run(config, store, one_device)
    config.data.args.mean = (0.0,)  # a tuple, which a manifest keeps as a list; the images are the same
    with pytest.raises(UserError, match="of the 64 validation images"):
        run(config, store, one_device)
    config.select = "last"
    assert "best" not in run(config, store, one_device)


def test_a_teacher_fitted_in_logit_space_must_say_how_it_is_read(store, one_device):
    teacher = mse_teacher.get_config("smoke")
    teacher.losses.softmax_mse.space = "logits"
    run(teacher, store, one_device, name="logits")
    config = wttm_student.get_config("smoke")
    config.teachers.a.run = "logits"
    with pytest.raises(UserError, match="clipped_logits"):
        run(config, store, one_device)
    config.teachers.a.output = "clipped_logits"
    run(config, store, one_device)


def test_the_seed_changes_the_run_and_not_the_split(store, one_device):
    results = []
    for seed in (0, 1):
        config = alone_student.get_config("smoke")
        config.seed, config.score_train = seed, True
        results.append(run(config, store, one_device, name=f"s{seed}"))
    assert results[0]["last"]["train"] != results[1]["last"]["train"]
    assert store.find("s0").manifest["splits"] == store.find("s1").manifest["splits"]


def test_nothing_decides_on_the_test_split(store, one_device, image_file, config, monkeypatch):
    """Changing the test split changes neither the weights nor the best epoch."""
    import dataclasses

    from kdjax.training import plan

    config.teachers, config.losses = ConfigDict(), ConfigDict({"cross_entropy": {"weight": 1.0}})
    config.model.name, config.model.args, config.epochs = "mlp", {"hidden": (4,)}, 3
    config.score_train = True
    real = run(config, store, one_device, name="real")
    load = plan.load_dataset

    def load_other(data, data_dir):
        dataset = load(data, data_dir)
        return dataclasses.replace(dataset, splits={**dataset.splits, "test": dataset.splits["test"][:1]})

    monkeypatch.setattr(plan, "load_dataset", load_other)
    other = run(config, store, one_device, name="other")
    for checkpoint in ("last", "best"):
        for split in ("train", "validation"):
            assert real[checkpoint][split] == other[checkpoint][split]


def test_resolve_writes_every_default_down():
    config = wttm_student.get_config("smoke")
    config.losses = {"soft": {"loss": "kd", "weight": 1}, "student_renyi": {"weight": -2, "order": 1}}
    resolved = resolve(config)
    filled = {"loss": "kd", "weight": 1.0, "teacher": "", "temperature": 4.0, "standardize": False, "mode": "tail"}
    assert resolved.losses.soft.to_dict() == filled
    assert isinstance(resolved.losses.student_renyi.order, float)
    json.dumps(resolved.to_dict())


@pytest.mark.parametrize(
    "terms, words",
    [
        ({"wtm": {"weight": 1.0}}, "unknown loss 'wtm'. Did you mean"),
        ({"kd": {"weight": 1.0, "temprature": 2.0}}, "takes no 'temprature'. Did you mean 'temperature'"),
        ({"ttm": {"weight": 1.0}}, "needs 'gamma'"),
        ({"kd": {"weight": 1.0, "temperature": 0.0}}, "temperature"),
        ({"tolerant": {"weight": 1.0, "eta": 1.5}}, "eta"),
        ({"softmax_mse": {"weight": 1.0, "space": "prob"}}, "space"),
        ({"kd": {"weight": 1.0, "teacher": "b"}}, "unknown teacher"),
        ({"kd": {"temperature": 1.0}}, "'weight'"),
        ({}, "empty"),
    ],
)
def test_a_wrong_loss_dies_before_anything_compiles(terms, words):
    config = wttm_student.get_config("smoke")
    config.losses = ConfigDict(terms)
    with pytest.raises(UserError, match=words):
        resolve(config)


def of_wrong_arguments(stud, teacher_logits):
    return (stud - teacher_logits).sum(-1)


def of_one_number(logits, labels):
    return (logits.sum(-1) * labels).mean()


def test_an_own_loss_with_an_unknown_input_is_refused_with_the_known_ones():
    config = wttm_student.get_config("smoke")
    config.losses = {"own": {"loss": f"{__name__}:of_wrong_arguments", "weight": 1.0}}
    with pytest.raises(UserError, match="takes 'stud', which is neither .* There are: .*student_logits"):
        resolve(config)


def test_an_own_loss_of_labels_reduces_them_itself_only_where_all_have_one(store, one_device):
    config = alone_student.get_config("smoke")
    config.losses = {"own": {"loss": f"{__name__}:of_one_number", "weight": 1.0}}
    assert run(config, store, one_device, name="all")
    config.data.protocols = {"labelled_fraction": {"fraction": 0.5}}
    with pytest.raises(UserError, match=r"reads labels and returns one number"):
        run(config, store, one_device, name="own")


def test_a_loss_that_reads_a_teacher_needs_one():
    config = alone_student.get_config("smoke")
    config.losses = {"kd": {"weight": 1.0}}
    with pytest.raises(UserError, match="reads a teacher"):
        resolve(config)


def test_a_batch_that_the_devices_do_not_divide(store):
    config = ce_teacher.get_config("smoke")
    config.batch_size = 30
    with pytest.raises(UserError, match="not a multiple of the 4 devices; use 28 or 32"):
        train(config, store, devices=jax.local_devices(), show=False)


def test_every_loss_on_logits_can_be_trained(store, one_device):
    """All such losses in one run; losses on maps and vectors are tested in test_methods.py."""
    run(mse_teacher.get_config("smoke"), store, one_device)
    config = wttm_student.get_config("smoke")

    def on_logits(name):
        return all(
            parameter in (*FROM_BATCH, *FROM_TEACHER) or kind.kind is kind.KEYWORD_ONLY
            for parameter, kind in inspect.signature(losses.LOSSES[name]).parameters.items()
        )

    required = {"ttm": {"gamma": 0.5}, "wttm": {"gamma": 0.5}, "student_renyi": {"order": 0.5}}
    config.losses = {name: {"weight": 0.5, **required.get(name, {})} for name in losses.LOSSES if on_logits(name)}
    config.losses.twice = {"loss": "kd", "weight": 0.5, "temperature": 2.0}
    config.epochs = 1
    row = run(config, store, one_device, name="all") and store.find("all").metrics()[0]["train"]
    total = sum(0.5 * row[f"losses/{name}"] for name in config.losses)
    assert row["loss"] == pytest.approx(total, rel=1e-4)


class Dropping(nn.Module):
    """A network of the user's own that draws dropout."""

    num_classes: int

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Dropout(0.5, deterministic=not train)(x.reshape(len(x), -1))
        return nn.Dense(self.num_classes)(x)


@pytest.mark.parametrize(
    ("model", "version", "warned"), [("dropping", 1, True), ("dropping", 2, False), ("mlp", 1, False)]
)
def test_a_resumed_run_is_told_that_its_dropout_draws_have_changed(
    store, one_device, monkeypatch, caplog, model, version, warned
):
    config = alone_student.get_config("smoke")
    config.epochs = 2
    if model == "dropping":
        config.model.name, config.model.args = f"{__name__}:Dropping", {}
    with monkeypatch.context() as patch:
        stop_after(1, patch)
        with pytest.raises(Interrupted):
            run(config, store, one_device, name="a")
    path = store.find("a").path / "manifest.json"
    manifest = json.loads(path.read_text())
    assert manifest["randomness"] == 2
    if version == 1:  # as written before the manifest had a version
        del manifest["randomness"]
    path.write_text(json.dumps(manifest))
    run(config, store, one_device, name="a")
    assert ("dropout draws differ" in caplog.text) == warned

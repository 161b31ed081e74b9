"""Whole runs on streamed and partly labelled data, and on views that mix examples or differ between the networks."""

import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from small_world import make_plan, start, student_config

from kdjax.config import defaults
from kdjax.data import Rows, load_dataset, make_order
from kdjax.data.encoded import Files
from kdjax.errors import Interrupted, UserError
from kdjax.inspection.predict import score_run
from kdjax.store import Store
from kdjax.training import forward, parallel, steps
from kdjax.training.batch_loader import BatchLoader
from kdjax.training.evaluation import evaluate, stream_if_needed
from kdjax.training.loop import train
from kdjax.training.networks import load_network
from kdjax.training.plan import resolve
from kdjax.training.spec import StepContext
from kdjax.training.structure import combine
from kdjax.training.trainer import Trainer


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "runs")


def alone(image_file: str, **data) -> ConfigDict:
    config = defaults()
    config.model.args, config.epochs, config.batch_size, config.eval_batch_size = {"hidden": (8,)}, 2, 16, 16
    config.losses = {"cross_entropy": {"weight": 1.0}}
    config.data.name, config.data.args, config.data.view = "arrays", {"path": image_file}, "crop_flip"
    config.data.update(data)
    return config


def scores(result: dict) -> str:
    return json.dumps({name: value for name, value in result.items() if name != "seconds"}, sort_keys=True)


def weights(store: Store, name: str) -> dict:
    return store.find(name).restore_variables("last")[0]


@pytest.mark.parametrize("view", ["crop_flip", "crop_flip+mixup:1"])
def test_a_streamed_run_equals_the_resident_run_to_the_bit(image_file, store, view):
    devices = jax.local_devices()[:2]
    results = {}
    for stream in ("auto", "always"):
        config = alone(image_file, view=view, stream=stream)
        results[stream] = train(config, store, name=stream, devices=devices, show=False)
    assert scores(results["auto"]) == scores(results["always"])
    jax.tree.map(np.testing.assert_array_equal, weights(store, "auto"), weights(store, "always"))
    row = store.find("always").metrics()[0]
    assert (
        row["waited_for_data"] >= 0
        and row["bad_images"] == 0
        and "waited_for_data" not in store.find("auto").metrics()[0]
    )


def test_a_stopped_stream_resumes_exactly(image_file, store, one_device, monkeypatch):
    config = alone(image_file, stream="always", view="crop")
    monkeypatch.setattr("kdjax.training.trainer.MOST_STREAMED_STEPS", 1)
    whole = train(config, store, name="whole", devices=one_device, show=False)
    with monkeypatch.context() as patch:
        dispatch, count = Trainer._dispatch, iter(range(100))

        def stopping(self, *arguments):
            dispatch(self, *arguments)
            if next(count) == 1:
                self.stop.signum = 15

        patch.setattr(Trainer, "_dispatch", stopping)
        with pytest.raises(Interrupted):
            train(config, store, name="stopped", devices=one_device, show=False)
    assert store.find("stopped").steps() == [2]  # in the middle of the first epoch
    assert scores(train(config, store, name="stopped", devices=one_device, show=False)) == scores(whole)


# ---- images that stay on disk


def photographs(data_dir: str) -> Rows:
    """A tiny set like ImageNet: photographs of different sizes, in two classes of different colour."""
    rng, paths = np.random.default_rng(3), []
    for i in range(30):
        height, width = rng.integers(18, 40, 2)
        pixels = rng.integers(0, 120, (height, width, 3)).astype(np.uint8)
        pixels[..., i % 2] += 100
        paths.append(f"{data_dir}/{i}.png")
        Image.fromarray(pixels).save(paths[-1])
    return Rows(Files(tuple(paths)), np.arange(30) % 2, None, 2, num_train=20)


def imagenet_like(**data) -> ConfigDict:
    config = alone("")
    config.data.name, config.data.args, config.data.view = "test_batch_loader:photographs", {}, "rrc_flip"
    config.data.size, config.data.interpolation, config.data.validation = 16, "bilinear", 0.0
    config.batch_size, config.eval_batch_size, config.data.workers = 8, 8, 0
    config.data.update(data)
    return config


def test_a_tiny_imagenet_is_trained_from_disk_end_to_end(store, tmp_path, one_device):
    config = imagenet_like()
    result = train(config, store, name="photos", data_dir=str(tmp_path), devices=one_device, show=False)
    run = store.find("photos")
    assert result["last"]["step"] == 4 and run.metrics()[0]["bad_images"] == 0
    # 10 test images in batches of 8: the last batch is filled up and masked, every example counts once.
    assert round(10 * result["last"]["test"]["accuracy"], 6) % 1 == 0
    dataset = load_dataset(resolve(config).data, str(tmp_path))
    model = load_network(run).model
    one_by_one = evaluate(model, weights(store, "photos"), dataset, "test", 1, one_device)
    assert one_by_one["accuracy"] == result["last"]["test"]["accuracy"]
    assert one_by_one["loss"] == pytest.approx(result["last"]["test"]["loss"], rel=1e-5)
    again = score_run(store, "photos", data_dir=str(tmp_path), devices=one_device)
    assert again["test"] == pytest.approx(result["last"]["test"])


def test_bad_images_are_counted_and_masked(store, tmp_path, one_device):
    photographs(str(tmp_path))
    config = imagenet_like(skip_bad=True)
    dataset = load_dataset(resolve(config).data, str(tmp_path))
    (tmp_path / "4.png").write_bytes(b"no image")
    order = make_order(dataset, 4, 0)
    loader = BatchLoader(dataset, order, "rrc_flip", one_device, last=8, workers=0)
    batch = loader.batches(0, 0, order.steps)
    loader.close()
    index, mask = batch.index.ravel(), batch.mask.ravel()
    np.testing.assert_array_equal(mask, index != 4)
    assert loader.bad == (index == 4).sum()


# ---- data larger than the devices


def test_a_set_that_does_not_fit_is_streamed_with_a_warning(image_file, monkeypatch, one_device, caplog):
    dataset = load_dataset(resolve(alone(image_file)).data, "")
    assert stream_if_needed(dataset, "auto", one_device) is dataset
    monkeypatch.setattr(parallel, "memory", lambda devices: dataset.images.nbytes)
    assert stream_if_needed(dataset, "auto", one_device).streamed
    assert "it is streamed" in caplog.text
    with pytest.raises(UserError, match="leave config.data.stream at 'auto'"):
        stream_if_needed(dataset, "never", one_device)


# ---- partly labelled


def partly_labelled(image_file: str, **changed) -> ConfigDict:
    config = student_config(**changed)
    config.data.args = {"path": image_file}
    config.data.protocols = {"labelled_fraction": {"fraction": 0.25}}
    return config


def step_of(plan):
    return jax.pmap(
        lambda state, fixed, batch: steps.train_step(state, fixed, batch, spec=plan.spec, axis_name="devices"),
        axis_name="devices", in_axes=(None, None, 0), out_axes=None, devices=plan.devices,
    )  # fmt: skip


def first_batch(plan):
    loader = BatchLoader(plan.dataset, make_order(plan.dataset, 8, 0), plan.spec.view, plan.devices, last=1)
    return loader, jax.tree.map(lambda leaf: leaf[:, 0], loader.batches(0, 0, 1))


def test_label_terms_see_labelled_examples_only_and_distillation_sees_all(image_file):
    config = partly_labelled(image_file)
    config.data.view = "none"
    plan = make_plan(config, jax.local_devices()[:1])
    loader, batch = first_batch(plan)
    assert (loader.labelled, loader.unlabelled) == (4, 4) and batch.labelled.sum() == 4
    assert (plan.dataset.labels[batch.index[~batch.labelled]] == -1).all()  # removed from the data, not only masked
    step, (carry, fixed) = step_of(plan), start(plan)
    params, sums = jax.device_get(step(carry[0], fixed, batch))
    assert sums.metrics["accuracy"][1] == 4

    # The same batch with other labels in place of the removed ones: the mask alone must exclude them.
    known = np.where(plan.dataset.labels < 0, 3, plan.dataset.labels)
    again, _ = step(carry[0], fixed._replace(arrays={**fixed.arrays, "labels": known}), batch)
    jax.tree.map(np.testing.assert_array_equal, params.params, jax.device_get(again.params))
    # Masking the unlabelled half too changes the distillation loss, which reads all examples.
    masked, _ = step(carry[0], fixed, batch._replace(mask=batch.mask & batch.labelled))
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), params.params, jax.device_get(masked.params))
    assert max(jax.tree.leaves(moved)) > 1e-6


def test_a_teacher_that_knows_more_labels_is_refused_unless_allowed(image_file, store, one_device):
    train(alone(image_file), store, name="images/all", devices=one_device, show=False)
    partly = alone(image_file, protocols={"labelled_fraction": {"fraction": 0.25}})
    train(partly, store, name="images/partly", devices=one_device, show=False)
    student = alone(image_file, protocols={"labelled_fraction": {"fraction": 0.25}})
    student.losses.kd = ConfigDict({"weight": 0.9, "temperature": 4.0})
    student.teachers = {"a": {"run": "images/all"}}
    with pytest.raises(UserError, match="labels that the student does not have.*more_labels=True"):
        train(student, store, name="s", devices=one_device, show=False)
    student.teachers.a.run = "images/partly"
    train(student, store, name="s", devices=one_device, show=False)
    row = store.find("s").metrics()[0]
    assert row["examples"] == {"labelled": 24, "unlabelled": 24}
    assert store.find("s").manifest["labelled"] == store.find("images/partly").manifest["labelled"]
    assert store.find("s").manifest["protocols"][0]["labelled"] == 16
    student.teachers.a.run, student.teachers.a.more_labels = "images/all", True
    train(student, store, name="t", devices=one_device, show=False)


# ---- views


def views_of(plan):
    batch = jax.tree.map(lambda leaf: leaf[0], first_batch(plan)[1])
    context = StepContext(batch, combine(plan.spec.structure, plan.numbers), plan.spec, None)
    return forward.make_views(start(plan)[1], context), batch


def test_a_teacher_may_see_another_view_with_the_same_crop(image_file):
    config = student_config()
    config.data.args, config.data.view, config.data.teacher_view = (
        {"path": image_file},
        "crop_flip+cutout:4",
        "crop_flip",
    )
    plan = make_plan(config, jax.local_devices()[:1])
    assert plan.spec.view == "crop_flip+cutout:4" and plan.spec.teachers[0].view == "crop_flip"

    views, batch = views_of(plan)
    student, teacher = (np.asarray(views.images[view]) for view in ("crop_flip+cutout:4", "crop_flip"))
    differ = (student != teacher).any(axis=-1)
    assert 0 < differ.sum(axis=(1, 2)).max() <= 16  # the pixels of the hole


def test_targets_are_mixed_as_the_images_are(image_file):
    config = student_config()
    config.losses = {"cross_entropy": {"weight": 1.0}, "kd": {"weight": 1.0, "temperature": 4.0}}
    config.data.args, config.data.view = {"path": image_file}, "none+mixup:1"
    plan = make_plan(config, jax.local_devices()[:1])

    views, batch = views_of(plan)
    images, labels = plan.dataset.images, plan.dataset.labels
    own, other = ((images[rows] / 255 - 0.5) / 0.5 for rows in (batch.index, batch.partner))
    for i in range(8):
        a, b = labels[batch.index[i]], labels[batch.partner[i]]
        part = float(views.targets[i, a])
        assert views.targets[i].sum() == pytest.approx(1)
        if a != b:
            assert part + float(views.targets[i, b]) == pytest.approx(1)
            np.testing.assert_allclose(
                views.images["none+mixup:1"][i], part * own[i] + (1 - part) * other[i], atol=1e-5
            )
    assert np.max(views.targets, axis=1).min() < 1


# ---- classes that are absent from training


def test_seen_and_unseen_classes_are_reported_apart(image_file, store, one_device):
    config = alone(image_file, protocols={"drop_classes": {"classes": (1,)}})
    test = train(config, store, name="dropped", devices=one_device, show=False)["last"]["test"]
    assert test["accuracy"] == pytest.approx(0.75 * test["accuracy_seen"] + 0.25 * test["accuracy_unseen"])
    record = store.find("dropped").manifest["protocols"][0]
    assert record["protocol"] == "drop_classes" and record["of_class"][1] == 0

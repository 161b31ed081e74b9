"""Analyses of runs, against NumPy on their outputs; a run against itself; errors."""

import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from sklearn.metrics import mutual_info_score

from kdjax import analysis, models
from kdjax.config import defaults
from kdjax.errors import UserError
from kdjax.inspection import analyze as analyses
from kdjax.inspection import attention as attention_analysis
from kdjax.inspection import maps
from kdjax.inspection.affinity import affinity
from kdjax.inspection.analyze import ANALYSES, analyze
from kdjax.inspection.exchange import export_weights, import_weights
from kdjax.inspection.inspected_run import InspectedRun
from kdjax.inspection.predict import LoadedRun, load_run, predict_run, score_run
from kdjax.reporting.analysis import report
from kdjax.store import Store
from kdjax.training.loop import train


@pytest.fixture(scope="module")
def image_file(tmp_path_factory) -> str:
    rng = np.random.default_rng(0)
    labels = np.arange(112) % 4
    images = rng.integers(0, 256, (112, 8, 8, 3)).astype(np.uint8)
    images[:, :, :, 0] = images[:, :, :, 0] // 4 + 40 * labels[:, None, None].astype(np.uint8)
    soft, path = rng.dirichlet(np.ones(4), 112), tmp_path_factory.mktemp("data") / "images.npz"
    train_part = {"images": images[:64], "labels": labels[:64], "soft": soft[:64]}
    np.savez(path, **train_part, test_images=images[64:], test_labels=labels[64:], test_soft=soft[64:])
    return str(path)


@pytest.fixture(scope="module")
def store(tmp_path_factory, image_file) -> Store:
    """Three small residual networks, the last on clean images; an MLP on digits, which have no distributions."""
    store = Store(tmp_path_factory.mktemp("runs"))
    for seed, name in enumerate(("a", "b", "c")):
        config = _config(seed)
        config.model.name, config.model.args = "resnet8", {"widths": (4, 4, 6, 8)}
        config.data.name, config.data.args = "arrays", {"path": image_file}
        config.data.validation, config.data.view = 0.25, "none" if name == "c" else "crop_flip"
        train(config, store, name=name, devices=jax.local_devices()[:1], show=False)
    config = _config(0)
    config.epochs, config.model.args, config.data.validation = 1, {"hidden": (4,)}, 0.0
    train(config, store, name="digits", devices=jax.local_devices()[:1], show=False)
    return store


def _config(seed: int) -> ConfigDict:
    config = defaults()
    config.seed, config.epochs, config.batch_size, config.eval_batch_size = seed, 6, 16, 20
    config.eval_every = 6
    config.losses = {"cross_entropy": {"weight": 1.0}}
    return config


def softmax(logits):
    e = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def test_posterior_measures_the_distance_to_the_data_sets_distributions(store):
    outputs = predict_run(store, "a")
    found = analyze(store, ["a", "b"], ["posterior"])["posterior"][0]
    q, p = softmax(outputs.logits), outputs.soft
    assert found["squared_distance"] == pytest.approx(np.mean(np.sum((q - p) ** 2, axis=1)), rel=1e-5)
    assert found["kl_posterior_network"] == pytest.approx(np.mean(np.sum(p * np.log(p / q), axis=1)), rel=1e-5)
    assert found["decomposition"]["squared_error"] == pytest.approx(found["squared_error"], rel=1e-5)
    assert found["reference_code_distance"] == pytest.approx(np.sqrt(np.sum((q - p) ** 2)), rel=1e-5)


def test_a_split_without_soft_labels_has_no_posterior(tmp_path):
    np.save(tmp_path / "soft.npy", np.random.default_rng(0).dirichlet(np.ones(10), 1797))
    config, store = _config(0), Store(tmp_path / "runs")
    config.epochs, config.model.args = 1, {"hidden": (4,)}
    config.data.protocols = {"soft_labels": {"path": str(tmp_path / "soft.npy")}}
    train(config, store, name="taught", devices=jax.local_devices()[:1], show=False)
    assert analyze(store, ["taught"], ["posterior"], split="train")["posterior"][0]["posterior_entropy"] > 0
    with pytest.raises(UserError, match="split 'test' of run 'taught' has labels alone"):
        analyze(store, ["taught"], ["posterior"])


@pytest.mark.parametrize("own", [{"protocols": {"soft_labels": {}}}, {"args": {"labels": "counts.npy"}}, {}])
def test_the_raters_noise_is_subtracted_if_their_number_is_known(store, monkeypatch, own):
    monkeypatch.setattr(analyses, "RATERS", {"arrays": 5})
    run = InspectedRun(store, "a", "test", "last", "data")
    run.loaded.config.data.update(own)
    row = analyses.posterior([run])[0]
    assert ("squared_distance_corrected" in row) == (not own)  # the number is not known for a user's own file


def test_fidelity_of_pairs_and_of_each_against_the_mean_of_the_others(store):
    outputs = {name: predict_run(store, name) for name in "abc"}
    found = analyze(store, ["a", "b", "c", "a"], ["fidelity"])["fidelity"]
    pairs = {(pair["first"], pair["second"]): pair for pair in found["pairs"]}
    p, q = (softmax(outputs[name].logits) for name in "ab")
    one = pairs["a", "b"]
    same = p.argmax(axis=1) == q.argmax(axis=1)
    assert one["agreement"] == pytest.approx(np.mean(same))
    assert one["kl_first_second"] == pytest.approx(np.mean(np.sum(p * np.log(p / q), axis=1)), rel=1e-4)
    assert one["total_variation"] == pytest.approx(np.mean(np.abs(p - q).sum(axis=1)) / 2, rel=1e-5)
    by_class = [np.mean(same[outputs["a"].labels == label]) for label in range(4)]
    np.testing.assert_allclose(one["agreement_by_class"], by_class)
    itself = pairs["a", "a"]
    assert itself["agreement"] == 1 and itself["kl_first_second"] == pytest.approx(0, abs=1e-7)
    assert len(found["against_mean"]) == 4
    mean = np.mean([outputs[name].logits for name in "aca"], axis=0)  # the others of b
    agreement = np.mean(mean.argmax(axis=1) == outputs["b"].logits.argmax(axis=1))
    assert found["against_mean"][1]["agreement"] == pytest.approx(agreement)


def test_the_reference_codes_values_are_means_of_batches(store, monkeypatch):
    monkeypatch.setattr(analyses, "REFERENCE_CODE_BATCH", 20)  # of 48: two whole batches and a part
    found = analyze(store, ["a", "b"], ["fidelity"])["fidelity"]["pairs"][0]
    first, second = (predict_run(store, name).logits for name in "ab")
    p, q = softmax(first), softmax(second)
    assert found["reference_code_kl"] == pytest.approx(10 * np.mean(np.sum(q * np.log(q / p), axis=1)), rel=1e-4)
    answers, sizes = np.stack([p.argmax(axis=1), q.argmax(axis=1)]), (20, 20, 8)
    information = [mutual_info_score(*part) for part in np.split(answers, [20, 40], axis=1)]
    assert found["reference_code_mutual_information"] == pytest.approx(np.average(information, weights=sizes))
    # The plug-in estimate of few examples is biased upwards.
    assert found["reference_code_mutual_information"] > found["mutual_information"]


@pytest.mark.parametrize("kind", maps.MAPS)
def test_attention_is_the_overlap_of_maps_in_numpy(store, kind, monkeypatch):
    monkeypatch.setattr(attention_analysis, "REFERENCE_CODE_BATCH", 20)
    found = analyze(store, ["a", "b", "a"], ["attention"])["attention"]
    overlaps = {tuple(row["runs"]): row for row in found["overlaps"] if row["map"] == kind}
    assert (
        overlaps["a", "a"]["iou"] == overlaps["a", "a"]["pooled_iou"] == overlaps["a", "a"]["reference_code_iou"] == 1
    )
    regions = [_regions(store, name, kind) for name in "ab"]
    shared, united = (which(*regions).sum(axis=(1, 2)) for which in (np.logical_and, np.logical_or))
    assert overlaps["a", "b"]["pooled_iou"] == pytest.approx(shared.sum() / united.sum(), abs=0.005)
    assert overlaps["a", "b"]["iou"] == pytest.approx(np.mean(shared[united > 0] / united[united > 0]), abs=0.005)
    batches = [np.split(pixels, [20, 40]) for pixels in (shared, united)]
    pooled = [some.sum() / all_.sum() for some, all_ in zip(*batches, strict=True)]
    assert overlaps["a", "b"]["reference_code_iou"] == pytest.approx(np.average(pooled, weights=(20, 20, 8)), abs=0.005)
    assert overlaps["a", "b", "a"] == {**overlaps["a", "b"], "runs": ["a", "b", "a"]}


def test_grad_cam_of_a_linear_head_is_the_activation_map_of_the_predicted_class():
    rng = np.random.default_rng(0)
    features, predicted = rng.normal(size=(3, 4, 5, 6)).astype(np.float32), np.array([1, 0, 1])
    head = maps.Head("", "as it is", rng.normal(size=(6, 2)).astype(np.float32), np.zeros(2, np.float32))
    own = analysis.class_activation(features, head.kernel, classes=predicted)
    np.testing.assert_allclose(maps.grad_cam(features, head, predicted), np.maximum(own, 0) / 20, rtol=1e-4, atol=1e-6)


def _regions(store: Store, name: str, kind: str) -> np.ndarray:
    """Returns the regions above 0.4 of a 2 x 2 map that is resized to 8 x 8 with half-pixel centres."""
    outputs, fc = predict_run(store, name, features=True), store.find(name).restore_variables("last")[0]["params"]["fc"]
    features, kernel = np.maximum(outputs.features, 0), np.asarray(fc["kernel"])
    np.testing.assert_allclose(features.mean(axis=(1, 2)) @ kernel + fc["bias"], outputs.logits, atol=1e-4)
    by_class = features @ kernel
    predicted = by_class[np.arange(len(features)), :, :, outputs.logits.argmax(axis=1)]
    cam = {"class activation": by_class.sum(axis=-1), "Grad-CAM": np.maximum(predicted, 0) / 4}[kind]
    at = np.clip((np.arange(8) + 0.5) / 4 - 0.5, 0, 1)  # weight of the second row or column
    weights = np.stack([1 - at, at], axis=1)
    cam = np.einsum("ip,npq,jq->nij", weights, cam, weights)
    low, high = cam.min(axis=(1, 2), keepdims=True), cam.max(axis=(1, 2), keepdims=True)
    return (cam - low) / (high - low + 1e-8) > 0.4


@pytest.mark.parametrize("model, args", [("wrn", {"depth": 10, "width": 1}), ("vgg8", {}), ("mobilenetv2_half", {})])
def test_the_feature_map_of_the_classifier_is_found(store, model, args, one_device):
    run = load_run(store, "a", devices=one_device)
    module = models.create_model(model, 4, **args)
    variables = models.init_variables(module, (1, 8, 8, 3), 0)
    config = ConfigDict(run.config.to_dict())
    config.model.name = model
    network = run.network._replace(model=module, variables=variables)
    head = maps.find_head("x", LoadedRun(network, config, run.dataset, one_device, 16), "test")
    assert head.kernel.shape[1] == 4 and head.activation in maps.ACTIVATIONS


def test_a_large_bias_does_not_hide_the_activation(store, one_device):
    run = load_run(store, "a", devices=one_device)
    params = dict(run.network.variables["params"])
    params["fc"] = {**params["fc"], "bias": np.asarray(params["fc"]["bias"]) + np.float32(1e4)}
    network = run.network._replace(variables={**run.network.variables, "params": params})
    found, plain = (maps.find_head("a", each, "test") for each in (run._replace(network=network), run))
    assert (found.feature, found.activation) == (plain.feature, plain.activation) == ("stage3_preact", "ReLU")


def test_calibration_and_the_temperature_fitted_on_validation(store):
    row = analyze(store, ["a"], ["calibration"])["calibration"][0]
    outputs, q = predict_run(store, "a"), softmax(predict_run(store, "a").logits)
    own = q[np.arange(len(q)), outputs.labels]
    assert row["nll"] == pytest.approx(-np.mean(np.log(own)), rel=1e-5)
    assert row["brier"] == pytest.approx(np.mean(np.sum((q - np.eye(4)[outputs.labels]) ** 2, axis=1)), rel=1e-5)
    assert sum(row["reliability"]["count"]) == len(q) == row["examples"]
    validation = predict_run(store, "a", "validation")
    temperatures = np.linspace(0.5, 2, 301) * row["temperature"]
    nll = [-np.mean(np.log(softmax(validation.logits / t)[np.arange(16), validation.labels])) for t in temperatures]
    assert row["temperature"] in (0.01, 100.0) or 0 < np.argmin(nll) < 300
    tempered = softmax(outputs.logits / row["temperature"])
    assert row["tempered"]["confidence"] == pytest.approx(np.mean(tempered.max(axis=1)), rel=1e-4)


def test_affinity_of_own_and_of_other_views(store):
    rows = {(row["run"], row["view"]): row for row in analyze(store, ["a", "c"], ["affinity"])["affinity"]}
    assert len(rows) == 4 and rows["c", "none"]["affinity"] == 1
    row = rows["a", "crop_flip"]
    shown = {view: predict_run(store, "a", "validation", view=view) for view in ("crop_flip", "none", "crop")}
    accuracy = {view: np.mean(one.logits.argmax(axis=1) == one.labels) for view, one in shown.items()}
    assert row["accuracy"] == pytest.approx(accuracy["crop_flip"]) and row["base_view"] == "crop"
    assert row["affinity"] == pytest.approx(accuracy["crop_flip"] / accuracy["none"])
    assert row["reference_code_affinity"] == pytest.approx(accuracy["crop_flip"] / accuracy["crop"])
    assert rows["c", "crop_flip"]["clean_model"] and not row["clean_model"]
    result = store.find("a").result
    outputs = predict_run(store, row["run"], "train")
    seen = np.mean(np.asarray(outputs.logits).argmax(axis=1) == outputs.labels)
    gap = seen - result["best"]["validation"]["accuracy"]
    assert row["overfit_gap"] == pytest.approx(gap)


def test_diversity_is_the_training_loss_under_the_own_view_over_the_clean_one(store):
    rows = {(row["run"], row["view"]): row for row in analyze(store, ["a", "b", "c"], ["affinity"])["affinity"]}
    loss = {}
    for name, view in (("a", "crop_flip"), ("c", "none")):
        outputs = predict_run(store, name, "train", view=view)
        loss[name] = -np.mean(np.log(softmax(outputs.logits)[np.arange(len(outputs.labels)), outputs.labels]))
    assert rows["a", "crop_flip"]["diversity"] == pytest.approx(loss["a"] / loss["c"], rel=1e-4)
    assert rows["a", "none"]["diversity"] is None and rows["c", "crop_flip"]["diversity"] is None
    assert rows["c", "none"]["diversity"] == 1
    alone = analyze(store, ["a", "b"], ["affinity"])["affinity"]
    assert all(row["diversity"] is None for row in alone)  # no run on clean images


def test_diversity_needs_a_clean_run_of_the_same_recipe(store):
    runs = [InspectedRun(store, name, "test", "last", "data") for name in ("a", "c")]
    assert affinity(runs)[0].diversity is not None
    runs[1].loaded.config.optimizer.weight_decay = 0.1
    assert affinity(runs)[0].diversity is None


@pytest.mark.parametrize(
    "runs, what, words",
    [
        ("a", "fidelty", "Did you mean 'fidelity'"),
        ("a,d", "fidelity", "has no run 'd'"),
        ("a", "fidelity", "name two or more"),
        ("a,digits", "fidelity", "other examples"),
        ("digits,digits", "attention", "has no map"),
        ("digits", "posterior", "soft_labels"),
        ("digits", "affinity", "no validation split"),
    ],
)
def test_an_analysis_that_does_not_fit_is_refused(store, runs, what, words):
    with pytest.raises(UserError, match=words):
        analyze(store, runs.split(","), [what])


def test_a_run_imported_without_data_is_refused_with_the_flag_that_names_it(store, tmp_path):
    export_weights(store, "a", str(tmp_path / "a.safetensors"))
    imported = Store(tmp_path / "runs")
    import_weights(str(tmp_path / "a.safetensors"), "resnet8", imported, name="b", args={"widths": (4, 4, 6, 8)})
    for look in (lambda: analyze(imported, ["b"], ["calibration"]), lambda: score_run(imported, "b")):
        with pytest.raises(UserError, match="run 'b' was imported without a data set; import it with --data"):
            look()


def test_an_unknown_split_is_refused(store):
    with pytest.raises(UserError, match="has no split 'tset'. Did you mean 'test'"):
        analyze(store, ["a"], ["calibration"], split="tset")


def test_every_analysis_has_its_table(store):
    found = analyze(store, ["a", "b", "c"], list(ANALYSES))
    assert set(found) == {"runs", "split", "checkpoint", "notes", *ANALYSES} and not found["notes"]
    shown = report(found)
    assert all(
        f"## {name}\n\n| run" in shown or f"## {name}\n\n| first" in shown or name == "attention" for name in ANALYSES
    )
    assert "## attention\n\n| map" in shown and "| Grad-CAM" in shown and "diversity" in shown
    assert "measured on the validation split" in shown.partition("## affinity")[2]  # not on the split of the first line
    for title in ("10 KL(second, first)", "mutual information", "IoU", "ECE, unweighted bins", "affinity"):
        assert f"| reference code: {title}" in shown


def test_caveats_are_reported(tmp_path):
    config, store = _config(0), Store(tmp_path)
    config.epochs, config.model.args, config.data.view = 1, {"hidden": (4,)}, "crop+mixup"
    config.losses = {"softmax_mse": {"weight": 1.0, "space": "logits"}}
    train(config, store, name="raw", devices=jax.local_devices()[:1], show=False)
    found = analyze(store, ["raw", "raw"], ["calibration", "affinity"])
    assert len(found["notes"]) == 2 and all(note in report(found) for note in found["notes"])
    assert "'raw' was fitted in logit space" in found["notes"][0] and "without its mix" in found["notes"][1]
    assert len(analyze(store, ["raw"], ["calibration"])["notes"]) == 1  # calibration measures no view


def test_the_command_prints_tables_and_writes_json(store, tmp_path, command):
    out, at = tmp_path / "found.json", f"--store={store.root}"
    done = command("kdjax.analyze", "--runs=a,b,c", "--what=fidelity,calibration", at, f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert report(json.loads(out.read_text())).strip() == done.stdout.strip()
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"]
    for arguments in ((), ("--runs=a,d",)):
        done = command("kdjax.analyze", at, *arguments)
        assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr

"""Equal names do not mean equal content: data, teachers, origin and code that were replaced are noticed."""

import dataclasses
import os
import shutil
import sys

import numpy as np
import pytest
from PIL import Image
from small_world import stop_after
from tiny_runs import edit, run, student_config, teacher_config, write_data

from kdjax import own_code
from kdjax.data import load_dataset
from kdjax.errors import Interrupted, UserError
from kdjax.inspection.analyze import analyze
from kdjax.inspection.predict import score_run
from kdjax.store import Store
from kdjax.store import run as run_module

LOSS = """
import jax

SCALE = 1.0

def scaled(x):
    return SCALE * x

def own_loss(logits, labels):
    return -scaled(jax.nn.log_softmax(logits))[..., 0]

def another(logits, labels):
    return 0.0
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A store with a teacher and a student that was stopped after its first step."""
    folder = tmp_path_factory.mktemp("content")
    write_data(folder / "data.npz")
    store = Store(folder / "runs")
    run(teacher_config(folder / "data.npz"), store, "teacher")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        stop_after(1, patch)
        run(student_config(folder / "data.npz"), store, "student")
    return folder


@pytest.fixture
def folder(trained, tmp_path):
    """A copy of the store, and of its data under the path that the configs name."""
    shutil.copytree(trained / "runs", tmp_path / "runs")
    saved = (trained / "data.npz").read_bytes()
    yield tmp_path
    (trained / "data.npz").write_bytes(saved)


@pytest.fixture(autouse=True)
def read_again(monkeypatch):
    """Lets each call read the data again, as each process does."""
    from kdjax.data import sources

    monkeypatch.setattr(sources, "_read", sources._read.__wrapped__)


USES = {
    "resume": lambda folder, data: run(student_config(data), Store(folder / "runs"), "student"),
    "evaluate": lambda folder, data: score_run(Store(folder / "runs"), "teacher"),
    "analyze": lambda folder, data: analyze(Store(folder / "runs"), ["teacher"], ["calibration"]),
    "student": lambda folder, data: run(student_config(data), Store(folder / "runs"), "another"),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("rows", [40, 48])
def test_replaced_data_is_refused_with_the_two_ways_out(use, rows, folder, trained):
    write_data(trained / "data.npz", seed=1, rows=rows)
    before = {path: path.read_bytes() for path in (folder / "runs").rglob("*.json*")}
    with pytest.raises(UserError, match="images of the data set.* changed since; put the former .* another --run"):
        USES[use](folder, trained / "data.npz")
    assert {path: path.read_bytes() for path in (folder / "runs").rglob("*.json*")} == before


def test_other_rows_in_a_split_are_refused_even_without_hashes(folder, trained, caplog):
    """Manifests of earlier versions have the hashes of the splits' rows alone."""
    manifest = folder / "runs" / "teacher" / "manifest.json"
    edit(manifest, lambda value: value.pop("hashes"))
    run_module._warn_of_missing_hashes.cache_clear()
    store = Store(folder / "runs")
    assert score_run(store, "teacher") == score_run(store, "teacher")
    assert caplog.text.count("kept no hashes") == 1
    write_data(trained / "data.npz", seed=1, rows=48)
    with pytest.raises(UserError, match="rows of the split 'train'"):
        score_run(store, "teacher")


def test_a_replaced_teacher_is_refused(folder, trained):
    shutil.rmtree(folder / "runs" / "teacher")
    run(teacher_config(trained / "data.npz", seed=1), Store(folder / "runs"), "teacher")
    with pytest.raises(UserError, match="run 'student' .* the weights, or the file, of teacher 'a' changed since"):
        USES["resume"](folder, trained / "data.npz")


def test_replaced_initial_weights_are_refused(folder, trained, monkeypatch):
    config = teacher_config(trained / "data.npz", init_from="teacher")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_after(1, patch)
        run(config, Store(folder / "runs"), "tuned")
    shutil.rmtree(folder / "runs" / "teacher")
    run(teacher_config(trained / "data.npz", seed=1), Store(folder / "runs"), "teacher")
    with pytest.raises(UserError, match="the weights of config.init_from changed since"):
        run(config, Store(folder / "runs"), "tuned")


@pytest.mark.parametrize(
    "old, new, changed",
    [
        ("[..., 0]", "[..., 1]", True),
        ("SCALE * x", "SCALE * x * x", True),
        ("SCALE = 1.0", "SCALE = 2.0", True),
        ("return 0.0", "return 1.0", False),
        ("def another", "# a comment\n\n\ndef another", False),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_an_edited_loss_of_ones_own_is_refused(old, new, changed, finished, folder, trained, monkeypatch, capsys):
    """Also where the run is finished: the old table under the new loss would be wrong."""
    monkeypatch.syspath_prepend(folder)
    (folder / "edited.py").write_text(LOSS)
    config, store = teacher_config(trained / "data.npz"), Store(folder / "runs")
    config.losses = {"own": {"loss": "edited:own_loss", "weight": 1.0}}
    with monkeypatch.context() as patch:
        if not finished:
            stop_after(1, patch)
        try:
            first = run(config, store, "own")
        except Interrupted:
            first = None
    (folder / "edited.py").write_text(LOSS.replace(old, new))
    os.utime(folder / "edited.py", (1, 1))
    sys.modules.pop("edited")
    if changed:
        with pytest.raises(UserError, match="the source of 'edited:own_loss' changed since"):
            run(config, store, "own")
    else:
        second = run(config, store, "own", show=True)
        assert first is None or (
            second == first and "is finished: this is its stored result" in capsys.readouterr().err
        )
    sys.modules.pop("edited")


def test_a_run_under_another_jax_goes_on_with_a_warning(folder, trained, caplog):
    edit(folder / "runs" / "student" / "manifest.json", lambda manifest: manifest["versions"].update(jax="0.1.0"))
    USES["resume"](folder, trained / "data.npz")
    assert "jax 0.1.0 -> " in caplog.text


def test_files_are_compared_by_names_sizes_and_ends_and_never_by_times(tmp_path):
    """A copy of a folder elsewhere is the same data; one other pixel is not."""
    draw = np.random.default_rng(0)
    for number in range(8):
        path = tmp_path / "a" / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (4, 4, 3)).astype(np.uint8)).save(path)
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copyfile)

    def hashes(name, stream="auto"):
        config = teacher_config(tmp_path, data__name=f"folder:{tmp_path / name}", data__stream=stream)
        config.data.args = {}
        return load_dataset(config.data, "").hashes

    assert hashes("a") == hashes("b") == hashes("b", "always")
    changed = tmp_path / "b" / "class0" / "0.png"
    content = bytearray(changed.read_bytes())
    content[-20] ^= 1  # it is streamed below: such an image may not be decoded
    changed.write_bytes(content)
    assert (
        hashes("a")["images"] != (other := hashes("b", "always"))["images"] and hashes("a")["labels"] == other["labels"]
    )
    shutil.copyfile(tmp_path / "a" / "class0" / "0.png", changed)
    changed.rename(changed.with_name("00.png"))
    assert hashes("a")["images"] != hashes("b")["images"]


def test_targets_that_protocols_made_have_hashes_too(trained):
    config = teacher_config(trained / "data.npz")
    plain = load_dataset(config.data, "")
    config.data.protocols = {"label_noise": {"rate": 0.5}}
    noisy = load_dataset(config.data, "")
    assert plain.hashes == noisy.source_hashes and set(noisy.hashes) - set(plain.hashes) == {
        "labels after its protocols"
    }
    assert dataclasses.replace(plain, content=None).hashes == {}


def test_code_without_a_source_has_no_hash():
    assert own_code.source_hashes({"config.data.name": "math:sqrt"}) == {}

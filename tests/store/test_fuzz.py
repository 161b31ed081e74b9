"""Changed files of a store, of data and of weights: one line or the right result, never a crash, code or much memory.

The ordinary suite tries some 500 inputs, the slow one 100,000: `./launch/test.sh --slow tests/store/test_fuzz.py`.
"""

import copy
import json
import pathlib
import pickle
import resource
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_runs import run, teacher_config, write_data

from kdjax.bounded import ArrayUnpickler
from kdjax.config import defaults
from kdjax.data import load_dataset
from kdjax.data.encoded import Files, decode, size_of
from kdjax.errors import UserError
from kdjax.interop import read_weights, write_weights
from kdjax.reporting.collect import collect
from kdjax.store import Store
from kdjax.training.networks import load_network

MOST_MEGABYTES = 256  # by which the peak of memory may rise while a file of a few kilobytes is read
FEW = {"max_examples": 70, "deadline": None, "database": None, "derandomize": True, "phases": [Phase.generate]}
FEW["suppress_health_check"] = list(HealthCheck)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A store with a teacher, and files of data and weights."""
    world = tmp_path_factory.mktemp("fuzz")
    write_data(world / "data.npz")
    run(teacher_config(world / "data.npz", epochs=1), Store(world / "runs"), "teacher")
    write_weights(world / "a.npz", {"w": np.ones((3, 4), np.float32), "b": np.zeros(3)})
    write_weights(world / "a.safetensors", {"w": np.ones((3, 4), np.float32), "b": np.zeros(3)})
    Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3)).save(world / "a.png")
    Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3)).save(world / "a.jpg")
    return world


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("timeit:timeit"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
EDITS = st.tuples(st.sampled_from(["manifest.json", "result.json", "metrics.jsonl"]), st.integers(0, 10**6), JSON)
BYTES = st.tuples(
    st.sampled_from(["flip", "cut", "insert", "repeat", "zero"]),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4),
)


def places(value, path=()):
    """Yields the path of every entry of nested JSON."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def replaced(value, path, new):
    value = copy.deepcopy(value)
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = new
    return value


def change(content: bytes, how: str, where: list) -> bytes:
    data = bytearray(content)
    for place, number in where:
        at = place % max(1, len(data))
        if how == "flip" and data:
            data[at] ^= number or 1
        elif how == "cut":
            del data[at:]
        elif how == "insert":
            data[at:at] = bytes([number]) * (1 + number % 9)
        elif how == "repeat":
            data[at:at] = data[at : at + number]
        elif how == "zero":
            data[at : at + 8] = bytes(len(data[at : at + 8]))
    return bytes(data)


def tell(action) -> None:
    """Runs an action that may succeed or be refused in one line, within bounds of memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        action()
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 2000
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10 < MOST_MEGABYTES


def edited_store(edit, world):
    name, place, new = edit
    root = pathlib.Path(world, "edited")
    if not root.exists():
        shutil.copytree(world / "runs", root)
    source, path = world / "runs" / "teacher" / name, root / "teacher" / name
    if name.endswith("l"):
        lines = [json.loads(line) for line in source.read_text().splitlines()]
        where = list(places(lines))
        lines = replaced(lines, where[place % len(where)], new)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    else:
        value = json.loads(source.read_text())
        where = list(places(value))
        path.write_text(json.dumps(replaced(value, where[place % len(where)], new)))
    store = Store(root)
    one = store.run("teacher")
    try:
        for action in (
            lambda: one.manifest,
            lambda: one.result,
            lambda: one.metrics(),
            lambda: collect(store),
            lambda: load_network(store.find("teacher")),
            lambda: one.begin({"config": teacher_config(world / "data.npz", epochs=1).to_dict()}),
        ):
            tell(action)
    finally:
        shutil.copy(source, path)


def changed_bytes(change_, world, source, read):
    how, where = change_
    path = world / f"changed{pathlib.Path(source).suffix}"
    path.write_bytes(change((world / source).read_bytes(), how, where))
    tell(lambda: read(path))


def read_arrays(path):
    config = defaults().data
    config.name, config.args, config.validation = "arrays", {"path": str(path)}, 0.1
    load_dataset(config, "")


def unpickle(path):
    try:
        found = ArrayUnpickler(path.read_bytes()).load()
        np.asarray(found[b"data"])
    except Exception as error:  # the callers take every exception for damage
        assert not isinstance(error, MemoryError), error


def read_checkpoint(path):
    folder = path.with_suffix("")
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "a" / "checkpoints").mkdir(parents=True)
    shutil.copy(path, folder / "a" / "checkpoints" / "3.safetensors")
    Store(folder).run("a").restore_variables("last")


FILES = {
    "arrays": ("data.npz", read_arrays),
    "npz": ("a.npz", read_weights),
    "safetensors": ("a.safetensors", read_weights),
    "png": ("a.png", lambda path: (size_of(Files([str(path)]), 0), decode(Files([str(path)]), 0))),
    "jpg": ("a.jpg", lambda path: (size_of(Files([str(path)]), 0), decode(Files([str(path)]), 0))),
    "pickle": ("a.pkl", unpickle),
    "checkpoint": ("checkpoint.safetensors", read_checkpoint),
}


@pytest.fixture(scope="module")
def sources(world):
    batch = {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 1]}
    (world / "a.pkl").write_bytes(pickle.dumps(batch, protocol=2))
    packed = next((world / "runs" / "teacher" / "checkpoints").glob("*.safetensors"))
    shutil.copy(packed, world / "checkpoint.safetensors")
    return world


def try_files(number: int, name: str, world, derandomize: bool = True) -> None:
    source, read = FILES[name]
    options = {**FEW, "max_examples": number, "derandomize": derandomize}

    @settings(**options)
    @given(BYTES)
    def body(how):
        changed_bytes(how, world, source, read)

    body()


def try_edits(number: int, world, derandomize: bool = True) -> None:
    options = {**FEW, "max_examples": number, "derandomize": derandomize}

    @settings(**options)
    @given(EDITS)
    def body(edit):
        edited_store(edit, world)

    body()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.filterwarnings("ignore")
def test_a_changed_file_is_one_line_or_the_right_result(name, sources):
    try_files(55, name, sources)


@pytest.mark.filterwarnings("ignore")
def test_a_changed_entry_of_a_store_is_one_line(world):
    try_edits(115, world)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
@pytest.mark.filterwarnings("ignore")
def test_many_changed_files(name, sources):
    try_files(13_000, name, sources, derandomize=False)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_many_changed_entries_of_a_store(world):
    try_edits(9_000, world, derandomize=False)

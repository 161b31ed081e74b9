"""Files of others: a small file never takes much memory, and nothing but regular files is opened."""

import io
import os
import pickle
import resource
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

from kdjax import bounded
from kdjax.bounded import ArrayUnpickler, TooLarge, open_regular, read_arrays, read_npz
from kdjax.config import defaults
from kdjax.data import load_dataset
from kdjax.data.encoded import Files, decode, size_of
from kdjax.errors import UserError
from kdjax.interop import read_weights


def header(shape, dtype="|u1") -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def bomb(path, shape, megabytes, name="images.npy") -> None:
    """Writes a small zip file whose member unpacks to many zeros."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open(name, "w", force_zip64=True) as file:
            file.write(header(shape))
            for _ in range(megabytes):
                file.write(bytes(1 << 20))


def arrays(path, **args) -> None:
    config = defaults().data
    config.name, config.args = "arrays", {"path": str(path), **args}
    load_dataset(config, "")


def grown(action) -> int:
    """Returns by how many megabytes the peak of this process's memory rises."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    action()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10


def refused(read, path) -> None:
    with pytest.raises((UserError, TooLarge, ValueError)) as error:
        read(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shape", [(6,), (200 << 20,), (1 << 50,)])
@pytest.mark.parametrize("read", [read_weights, read_npz, arrays], ids=["weights", "npz", "arrays"])
def test_an_archive_that_unpacks_to_much_more_is_refused_or_not_unpacked(shape, read, tmp_path):
    bomb(tmp_path / "a.npz", shape, 200)

    def action():
        if shape == (6,) and read is not arrays:
            assert len(read(tmp_path / "a.npz")) == 1
        else:
            refused(read, tmp_path / "a.npz")

    assert (tmp_path / "a.npz").stat().st_size < 2 << 20 and grown(action) < 100


def test_a_torch_file_whose_storage_unpacks_to_much_more_is_refused(tmp_path):
    class Storage:
        pass

    buffer = io.BytesIO()

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", Tag, "0", "cpu", 400 << 20) if isinstance(value, Storage) else None

    Tag = type("FloatStorage", (), {"__module__": "torch"})
    sys.modules.setdefault("torch", type(sys)("torch")).FloatStorage = Tag
    Tag.__qualname__ = "FloatStorage"
    try:
        Pickler(buffer, protocol=2).dump({"a": Storage()})
    finally:
        if not hasattr(sys.modules["torch"], "__file__"):
            del sys.modules["torch"]
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", buffer.getvalue())
        with archive.open("a/data/0", "w", force_zip64=True) as file:
            for _ in range(200):
                file.write(bytes(1 << 20))
    assert grown(lambda: refused(read_weights, tmp_path / "a.pth")) < 100


MEMO = b"\x80\x02Nr\xff\xff\xff\x0f."  # puts None at place 2^28 of the memo
HOSTILE = {
    "memo": MEMO,
    "bytearray": b"\x80\x05\x96" + (1 << 34).to_bytes(8, "little") + b"a.",
    "code": b"cos\nsystem\n(S'true'\ntR.",
    "getattr": b"c__builtin__\ngetattr\n.",
    "extension": b"\x80\x02\x82\x01.",
    "persistent": b"\x80\x02K\x01Q.",
    "objects": pickle.dumps(np.array([{}], object), protocol=2),
    "shape": b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(L1099511627776L\ntS'b'\ntR.",
    "call": b"cnumpy\nndarray\n((L1099511627776L\nttR.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_runs_nothing_and_takes_nothing(name):
    def action():
        try:
            found = ArrayUnpickler(HOSTILE[name]).load()
        except Exception as error:
            assert name not in ("memo", "shape"), error
        else:
            assert name in ("memo", "shape", "objects") and np.size(found) <= 1

    assert grown(action) < 50


def test_texts_that_are_encoded_again_and_again_are_refused():
    again = b"h\x01h\x02\x86R0" * 9  # encode(text, 'latin1'), thrown away
    start = b"\x80\x02c_codecs\nencode\nq\x010X\xe8\x03\x00\x00" + b"a" * 1000 + b"q\x020h\x01"
    with pytest.raises((TooLarge, pickle.UnpicklingError, TypeError, IndexError)):
        ArrayUnpickler(start + again.replace(b"h\x01", b"h\x01", 1) + b".").load()


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_arrays_come_back_from_pickles(protocol):
    value = {b"data": np.arange(12, dtype=np.uint8).reshape(3, 4), b"labels": [1, 2, 3]}
    found = ArrayUnpickler(pickle.dumps(value, protocol=protocol)).load()
    np.testing.assert_array_equal(np.asarray(found[b"data"]), value[b"data"])
    assert found[b"labels"] == [1, 2, 3]


@pytest.fixture
def pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    return tmp_path / "pipe.png"


READERS = {
    "regular": open_regular,
    "weights": read_weights,
    "arrays": read_arrays,
    "image": lambda path: decode(Files([str(path)]), 0),
    "device": lambda path: open_regular("/dev/zero"),
    "folder": lambda path: open_regular(path.parent),
}


@pytest.mark.parametrize("name", READERS)
def test_pipes_and_devices_are_refused(name, pipe):
    with pytest.raises((UserError, IsADirectoryError), match="not a regular file|Is a directory"):
        READERS[name](pipe)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_image_is_refused_by_the_size_in_its_header(tmp_path):
    with Image.new("1", (1, 1)) as image:
        image.save(tmp_path / "a.png")
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[16:24] = struct.pack(">II", 12_000, 9_000)
    content[29:33] = struct.pack(">I", __import__("zlib").crc32(bytes(content[12:29])))
    (tmp_path / "a.png").write_bytes(content)
    images = Files([str(tmp_path / "a.png")])
    for read in (decode, size_of):
        with pytest.raises(UserError, match=r"a.png cannot be read as an image: it unpacks to 12000x9000 pixels"):
            read(images, 0)


def test_no_reader_of_images_starts_a_program(tmp_path):
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    with pytest.raises(UserError, match="cannot be read as an image"):
        decode(Files([str(tmp_path / "a.png")]), 0)


@pytest.mark.parametrize("largest", [2**40, 7_000_000, 63])
def test_numbers_from_elsewhere_are_no_classes(largest, tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((40, 2, 2, 1), np.uint8), labels=np.arange(40) % 2 * largest)
    with pytest.raises(UserError, match=f"the labels are 2 numbers from 0 to {largest}.* number the classes from 0"):
        arrays(tmp_path / "a.npz")
    if largest > 63:
        with pytest.raises(UserError, match="at most 1,000,000 classes"):
            arrays(tmp_path / "a.npz", num_classes=largest + 1)
    else:
        arrays(tmp_path / "a.npz", num_classes=64)


def test_links_that_lead_out_of_a_folder_are_told(tmp_path, caplog):
    for number in range(4):
        path = tmp_path / "pics" / f"c{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(path)
    Image.new("RGB", (4, 4), (9, 0, 0)).save(tmp_path / "secret.png")
    (tmp_path / "pics" / "c0" / "link.png").symlink_to(tmp_path / "secret.png")
    config = defaults().data
    config.name, config.validation = f"folder:{tmp_path}/pics", 0.0
    config.args = {"test": 0.4}
    load_dataset(config, "")
    assert "1 of the images are links that lead out of" in caplog.text and "link.png" in caplog.text


def test_the_place_of_weight_files_in_earlier_versions(root):
    line = "from kdjax.store.weight_files import read_weights; print(read_weights.__module__)"
    done = subprocess.run([sys.executable, "-c", line], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "kdjax.interop.weight_files\n" and bounded.RATIO > 1

"""CIFAR from tiny files in the original formats: every form gives the same arrays, and damage is a one-line error."""

import io
import pickle
import tarfile

import numpy as np
import pytest
from ml_collections import ConfigDict

from kdjax.config import defaults
from kdjax.data import load_dataset
from kdjax.errors import UserError

COUNT = 3  # images in each file
ARCHIVES = {
    "cifar10": ("cifar-10-python.tar.gz", "cifar-10-binary.tar.gz"),
    "cifar100": ("cifar-100-python.tar.gz", "cifar-100-binary.tar.gz"),
}
FOLDERS = {
    "cifar-10-python.tar.gz": "cifar-10-batches-py",
    "cifar-10-binary.tar.gz": "cifar-10-batches-bin",
    "cifar-100-python.tar.gz": "cifar-100-python",
    "cifar-100-binary.tar.gz": "cifar-100-binary",
}


def content(name):
    """Returns the files of a set in order, the test file last: images [rows, 32, 32, 3] and labels."""
    draw, files = np.random.default_rng(0), 6 if name == "cifar10" else 2
    classes, shape = int(name.removeprefix("cifar")), (COUNT, 32, 32, 3)
    return [(draw.integers(0, 256, shape, np.uint8), draw.integers(0, classes, COUNT)) for _ in range(files)]


def planes(images):
    return np.stack([[image[..., c] for c in range(3)] for image in images]).reshape(len(images), 3072)


def python_file(name, images, labels):
    keys = {"labels": labels.tolist()} if name == "cifar10" else {
        "fine_labels": labels.tolist(), "coarse_labels": [0] * COUNT}  # fmt: skip
    batch = {key.encode(): value for key, value in {**keys, "data": planes(images), "batch_label": "one"}.items()}
    return pickle.dumps(batch, protocol=2)


def binary_file(name, images, labels):
    coarse = [] if name == "cifar10" else [np.full((COUNT, 1), 19, np.uint8)]
    return np.hstack([*coarse, labels[:, None].astype(np.uint8), planes(images)]).tobytes()


def files_of(name, archive):
    write, suffix = (python_file, "") if "python" in archive else (binary_file, ".bin")
    stems = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"] if name == "cifar10" else ["train", "test"]
    return {stem + suffix: write(name, *part) for stem, part in zip(stems, content(name), strict=True)}


def pack(folder, archive, files):
    """Writes an archive whose members are in reverse order."""
    with tarfile.open(folder / archive, "w:gz") as packed:
        for name in sorted(files, reverse=True):
            member = tarfile.TarInfo(f"{FOLDERS[archive]}/{name}")
            member.size = len(files[name])
            packed.addfile(member, io.BytesIO(files[name]))


def unpack(folder, archive, files):
    (folder / FOLDERS[archive]).mkdir()
    for name, data in files.items():
        (folder / FOLDERS[archive] / name).write_bytes(data)


def load(name, folder):
    config = ConfigDict({**defaults().data.to_dict(), "name": name, "validation": 0.0})
    return load_dataset(config, str(folder))


def refused(pattern, name, folder):
    with pytest.raises(UserError, match=pattern) as caught:
        load(name, folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("put", [pack, unpack])
@pytest.mark.parametrize("name, archive", [(name, archive) for name, both in ARCHIVES.items() for archive in both])
def test_every_form_gives_the_same_arrays(tmp_path, name, archive, put):
    put(tmp_path, archive, files_of(name, archive))
    data = load(name, tmp_path)
    images, labels = (np.concatenate(parts) for parts in zip(*content(name), strict=True))
    np.testing.assert_array_equal(data.images, images)
    np.testing.assert_array_equal(data.labels, labels)
    assert data.images.dtype == np.uint8 and data.num_classes == int(name.removeprefix("cifar"))
    np.testing.assert_array_equal(data.splits["test"], np.arange(len(labels) - COUNT, len(labels)))
    assert data.stored.views == ("crop_flip", "crop", "none") and len(data.stored.mean) == 3


@pytest.mark.parametrize("name", ARCHIVES)
def test_absent_files_are_asked_for_at_once(tmp_path, name):
    line = refused("download https://www.cs.toronto.edu/~kriz/" + ARCHIVES[name][0], name, tmp_path)
    assert f"python -m kdjax.prepare_data {name} --data_dir={tmp_path}" in line


@pytest.mark.parametrize("archive", ARCHIVES["cifar10"])
@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.999])
def test_truncated_archives_are_named(tmp_path, archive, keep):
    pack(tmp_path, archive, files_of("cifar10", archive))
    whole = (tmp_path / archive).read_bytes()
    (tmp_path / archive).write_bytes(whole[: keep if isinstance(keep, int) else int(keep * len(whole))])
    refused(f"{archive} is damaged or incomplete .* download https", "cifar10", tmp_path)


def test_a_flipped_bit_in_an_archive_is_noticed(tmp_path):
    archive = "cifar-10-binary.tar.gz"
    pack(tmp_path, archive, files_of("cifar10", archive))
    data = bytearray((tmp_path / archive).read_bytes())
    data[len(data) // 2] ^= 1  # random pixels do not compress, so that only the checksum shows it
    (tmp_path / archive).write_bytes(data)
    refused("damaged or incomplete", "cifar10", tmp_path)


@pytest.mark.parametrize("archive", ARCHIVES["cifar10"])
def test_missing_truncated_and_senseless_files_in_a_folder(tmp_path, archive):
    files = files_of("cifar10", archive)
    unpack(tmp_path, archive, files)
    first = next(iter(files))
    path = tmp_path / FOLDERS[archive] / first
    path.write_bytes(files[first][:-5])
    refused(f"damaged or incomplete .{first}", "cifar10", tmp_path)
    path.unlink()
    refused(f"it lacks {first}", "cifar10", tmp_path)
    label = files_of("cifar100", "cifar-100-binary.tar.gz")["train.bin"]
    path.write_bytes(pickle.dumps({b"data": np.zeros((1, 3)), b"labels": [0]}, 2) if "python" in archive else label)
    refused("damaged or incomplete", "cifar10", tmp_path)


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_hostile_pickle_runs_nothing(tmp_path, protocol):
    archive, trace = "cifar-10-python.tar.gz", tmp_path / "trace"
    files = files_of("cifar10", archive)
    files["data_batch_1"] = pickle.dumps({b"data": Hostile(str(trace)), b"labels": [0]}, protocol)
    pack(tmp_path, archive, files)
    refused("data_batch_1: UnpicklingError: it names .*open", "cifar10", tmp_path)
    assert not trace.exists()


def test_strings_of_python_2_are_read(tmp_path):
    """The original files were pickled by Python 2, where dtype codes and pixels are byte strings."""
    pixels = bytes(range(256)) * 12
    code = b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    code += b"(K\x01K\x01M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
    code += b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    code += b"\x89T" + len(pixels).to_bytes(4, "little") + pixels + b"tbU\x06labels]K\x07au."
    unpack(tmp_path, "cifar-10-python.tar.gz", files_of("cifar10", "cifar-10-python.tar.gz") | {"test_batch": code})
    data = load("cifar10", tmp_path)
    assert data.labels[-1] == 7
    np.testing.assert_array_equal(planes(data.images[-1:])[0], np.frombuffer(pixels, np.uint8))


HOSTILE = [b"cbuiltins\neval\n(S'1'\ntR.", b"cnumpy\nload\n.", b"cos\nsystem\n.", b"c_codecs\nopen\n."]


@pytest.mark.parametrize("code", HOSTILE)
def test_nothing_but_arrays_is_unpickled(tmp_path, code):
    files = files_of("cifar10", "cifar-10-python.tar.gz") | {"test_batch": code}
    unpack(tmp_path, "cifar-10-python.tar.gz", files)
    refused("test_batch: UnpicklingError: it names", "cifar10", tmp_path)

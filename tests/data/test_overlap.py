"""Images that two splits share are counted by content, of arrays, files and other encoded images alike."""

import time

import numpy as np
import pytest

from kdjax.data.encoded import Encoded, Files
from kdjax.data.overlap import TAIL, check_overlap, overlaps
from kdjax.errors import UserError

SPLITS = {"train": np.arange(10), "validation": np.arange(10, 15), "test": np.arange(15, 20)}
SHARED = {("train", "test"): 2, ("validation", "test"): 1}


class Bytes(Encoded):
    def __init__(self, content):
        self.content = content

    def __len__(self):
        return len(self.content)

    def encoded(self, row):
        return self.content[row]

    def name(self, row):
        return str(row)


def images():
    """Rows 15 and 16 are in the training split too, row 17 in validation; row 18 is there twice within its split."""
    array = np.random.default_rng(0).integers(0, 256, (20, 40, 40, 3), np.uint8)
    array[[15, 16, 17, 18]] = array[[3, 4, 11, 19]]
    return array


def files(folder, contents):
    for i, content in enumerate(contents):
        (folder / f"{i}.png").write_bytes(content)
    return Files([str(folder / f"{i}.png") for i in range(len(contents))])


@pytest.mark.parametrize("kind", ["uint8", "float32", "vectors", "bytes", "files"])
def test_shared_images_are_counted(tmp_path, kind):
    array = images()
    content = [image.tobytes() for image in array]
    made = {
        "uint8": lambda: array,
        "float32": lambda: array.astype(np.float32),
        "vectors": lambda: array.reshape(20, -1),
        "bytes": lambda: Bytes(content),
        "files": lambda: files(tmp_path, content),
    }[kind]()
    assert overlaps(made, SPLITS) == SHARED
    assert overlaps(made, {"train": SPLITS["train"], "validation": SPLITS["validation"]}) == {}


def test_files_that_differ_late_or_early_or_are_links(tmp_path):
    base = images()[0].tobytes()
    assert len(base) > 2 * TAIL
    late, early = base[:-1] + bytes([base[-1] ^ 1]), bytes([base[0] ^ 1]) + base[1:]
    paths = files(tmp_path, [base, late, early, b"", base[:10]]).paths
    splits = {"train": [0, 4], "test": [1, 2, 3]}
    assert overlaps(Files(paths), splits) == {}
    (tmp_path / "link.png").symlink_to(tmp_path / "0.png")
    assert overlaps(Files([*paths, str(tmp_path / "link.png")]), {**splits, "test": [1, 2, 5]}) == {
        ("train", "test"): 1
    }
    assert overlaps(Files(paths), {"train": [0], "test": [0, 1]}) == {("train", "test"): 1}
    with pytest.raises(UserError, match="gone.png cannot be read"):
        overlaps(Files([*paths, str(tmp_path / "gone.png")]), {"train": [0], "test": [5]})


def test_an_overlap_is_refused_or_warned_of(caplog):
    line = "data set 'mine' has the same images in two splits: train and test share 2, validation and test share 1"
    with pytest.raises(UserError, match=f"{line}; set config.data.allow_overlap") as caught:
        check_overlap("mine", images(), SPLITS, allow=False)
    assert "\n" not in str(caught.value)
    check_overlap("mine", images(), SPLITS, allow=True)
    assert line in caplog.text
    check_overlap("mine", images(), {"train": SPLITS["train"]}, allow=False)


def test_all_of_cifar_is_compared_in_no_time():
    array = np.random.default_rng(0).integers(0, 256, (60_000, 3072), np.uint8)
    start = time.perf_counter()
    assert overlaps(array, {"train": np.arange(50_000), "test": np.arange(50_000, 60_000)}) == {}
    assert time.perf_counter() - start < 5  # 0.2 s where nothing else runs

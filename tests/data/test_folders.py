"""Folders and lists of image files: their order, their splits, and one-line errors for what is wrong with them."""

import pickle
import struct

import numpy as np
import pytest
from ml_collections import ConfigDict

from kdjax.config import defaults
from kdjax.data import load_dataset
from kdjax.data.encoded import Files, decode, decode_all, size_of
from kdjax.data.folders import load_folder, load_imagenet, load_list, load_tiny_imagenet
from kdjax.errors import UserError

Image = pytest.importorskip("PIL.Image")


def image_of(i, size=6, channels=3):
    return np.random.default_rng(i).integers(0, 256, (size, size, channels), np.uint8)


def write(path, i=0, size=6, channels=3):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image_of(i, size, channels).squeeze()).save(path)


def names(rows):
    return ["/".join(path.rsplit("/", 2)[1:]) for path in rows.images.paths]


def refused(pattern, load, *args, **kwargs):
    with pytest.raises(UserError, match=pattern) as caught:
        load(*args, **kwargs)
    assert "\n" not in str(caught.value)


@pytest.fixture
def zoo(tmp_path):
    """Writes two classes in an arbitrary order, and files among them that are not images."""
    for i, name in enumerate(["dog/b.png", "cat/z.PNG", "dog/a.jpg", "cat/a.bmp", "dog/deep/er/c.png"]):
        write(tmp_path / "zoo" / name, i)
    for name in ["dog/.hidden.png", "dog/notes.txt", ".git/x.png", "__MACOSX/x.png", "README.png"]:
        (tmp_path / "zoo" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "zoo" / name).write_bytes(b"no image")
    return tmp_path


def test_classes_and_files_are_sorted_and_the_rest_is_ignored(zoo, monkeypatch):
    rows = load_folder(str(zoo), path="zoo", test=0.4)
    assert names(rows) == ["cat/a.bmp", "cat/z.PNG", "dog/a.jpg", "dog/b.png", "er/c.png"]
    np.testing.assert_array_equal(rows.labels, [0, 0, 1, 1, 1])
    assert isinstance(rows.images, Files) and rows.class_names == ("cat", "dog") and rows.num_classes == 2
    assert rows.num_train is None and rows.test == 0.4 and rows.soft is None
    np.testing.assert_array_equal(decode(rows.images, 1), image_of(1))
    monkeypatch.chdir(zoo)  # the current directory comes before data_dir
    assert load_folder("elsewhere", path="zoo").images.paths[0].startswith("zoo/")


@pytest.mark.parametrize("held_out", ["test", "val", "validation", "valid"])
def test_train_and_held_out_folders(tmp_path, held_out):
    for i, name in enumerate(["train/b/1.png", "train/a/2.png", "train/c/3.png"]):
        write(tmp_path / name, i)
    write(tmp_path / held_out / "c" / "4.png", 3)
    write(tmp_path / held_out / "a" / "5.png", 4)
    rows = load_folder("", path=str(tmp_path), channels=1)
    assert names(rows) == ["a/2.png", "b/1.png", "c/3.png", "a/5.png", "c/4.png"] and rows.num_train == 3
    np.testing.assert_array_equal(rows.labels, [0, 1, 2, 0, 2])
    assert decode_all(rows.images).shape == (5, 6, 6, 1)
    (tmp_path / held_out / "d").mkdir()
    refused("has class 'd', which the training split lacks", load_folder, "", path=str(tmp_path))


def tiny_imagenet(folder, classes=("n02", "n01")):
    for i, name in enumerate(classes):
        write(folder / "train" / name / "images" / f"{name}_0.JPEG", i, 64)
        (folder / "train" / name / f"{name}_boxes.txt").write_text("0 0 62 62")
    for i, name in enumerate(["val_1.JPEG", "val_0.JPEG"]):
        write(folder / "val" / "images" / name, 10 + i, 64)
    (folder / "val" / "val_annotations.txt").write_text("val_1.JPEG\tn01\t0\t0\t9\t9\nval_0.JPEG\tn02\t0\t0\t9\t9\n")
    write(folder / "test" / "images" / "test_0.JPEG", 20, 64)


def test_tiny_imagenet_as_it_unpacks(tmp_path):
    refused("python -m kdjax.prepare_data tiny_imagenet", load_tiny_imagenet, str(tmp_path))
    tiny_imagenet(tmp_path / "tiny-imagenet-200")
    rows = load_tiny_imagenet(str(tmp_path))
    assert names(rows) == ["images/n01_0.JPEG", "images/n02_0.JPEG", "images/val_0.JPEG", "images/val_1.JPEG"]
    np.testing.assert_array_equal(rows.labels, [0, 1, 1, 0])
    assert rows.num_train == 2 and decode_all(rows.images).shape == (4, 64, 64, 3)
    annotations = tmp_path / "tiny-imagenet-200" / "val" / "val_annotations.txt"
    annotations.write_text("val_7.JPEG\tn01\n")
    refused("1 of 1 files are missing, the first is .*val_7.JPEG", load_tiny_imagenet, str(tmp_path))
    annotations.write_text("val_0.JPEG\tn03\n")
    refused("has class 'n03', which the training split lacks. Did you mean", load_tiny_imagenet, str(tmp_path))
    annotations.write_text("val_0.JPEG n03\n")
    refused("must have a file, a tab and the class of the file", load_tiny_imagenet, str(tmp_path))


def test_imagenet_from_folders_of_images_of_all_sizes(tmp_path):
    refused("put there a folder imagenet with train/CLASS", load_imagenet, str(tmp_path))
    for i, name in enumerate(["train/n1/a.JPEG", "train/n2/b.JPEG", "val/n1/c.JPEG", "val/n2/d.JPEG"]):
        write(tmp_path / "imagenet" / name, i, 5 + i)
    rows = load_imagenet(str(tmp_path))
    assert rows.num_train == 2 and rows.num_classes == 2 and len(rows.images) == 4
    refused("d.JPEG is 6x6 and .*a.JPEG is 5x5|b.JPEG is 6x6 and .*a.JPEG is 5x5", decode_all, rows.images)


@pytest.mark.parametrize(
    "files, pattern",
    [
        ([], "there is no such folder in the current directory or in"),
        (["x.png"], "must have at least two folders, one per class; it has none"),
        (["cat/1.png"], "at least two folders, one per class; it has only 'cat'"),
        (["cat/1.png", "dog/1.txt"], "class 'dog' has no images in"),
        (["train/cat/1.png", "train/dog/1.txt"], "class 'dog' has no images in"),
        (
            ["train/cat/1.png", "train/dog/1.png", "val/dgo/1.png"],
            "has class 'dgo', which .* lacks. Did you mean 'dog'",
        ),
        (
            ["train/cat/1.png", "train/dog/1.png", "val/1.png"],
            "zoo/val has no folders of classes.* or use folder:.*zoo/train",
        ),
        (["train/cat/1.png", "train/dog/1.png", "val/dog/1.txt"], "class 'dog' has no images in"),
        (
            ["Train/cat/1.png", "Test/cat/1.png"],
            r"\(Test, Train\) are named like splits, not like classes; rename them",
        ),
        (["training/cat/1.png", "testing/cat/1.png"], "are named like splits"),
        (
            ["train/cat/1.png", "train/dog/1.png", "Val/dog/1.png"],
            "has 'train' and 'Val', which is not read; rename it",
        ),
    ],
)
def test_incomplete_folders_are_refused(tmp_path, files, pattern):
    for name in files:
        write(tmp_path / "zoo" / name) if name.endswith("png") else (tmp_path / "zoo" / name).parent.mkdir(parents=True)
    refused(pattern, load_folder, str(tmp_path), path="zoo")
    refused("channels must be 1 or 3, not 4", load_folder, str(tmp_path), path=str(tmp_path), channels=4)


def test_unreadable_and_truncated_images_and_other_channels(tmp_path):
    write(tmp_path / "a" / "grey.png", 0, channels=1)
    write(tmp_path / "a" / "alpha.png", 1, channels=4)
    write(tmp_path / "b" / "cut.png", 2)
    (tmp_path / "b" / "empty.png").touch()
    cut = tmp_path / "b" / "cut.png"
    cut.write_bytes(cut.read_bytes()[:-40])
    images = load_folder("", path=str(tmp_path)).images
    assert decode(images, 0).mode == decode(images, 1).mode == "RGB"
    refused("cut.png cannot be read as an image: .*; remove or replace it", decode, images, 2)
    refused("empty.png cannot be read as an image: it is empty", decode, images, 3)
    refused("cut.png cannot be read as an image", decode_all, images)


def test_a_link_that_leads_nowhere_counts_among_the_images_that_cannot_be_read(tmp_path):
    write(tmp_path / "a" / "1.png", 0)
    hashes = []
    for target in ("gone", "1.png"):
        (tmp_path / "a" / "2.png").unlink(missing_ok=True)
        (tmp_path / "a" / "2.png").symlink_to(target)
        images = Files([str(tmp_path / "a" / name) for name in ("1.png", "2.png")])
        hashes.append(images.content_hash())
        if target == "gone":
            refused("2.png cannot be read: No such file or directory; remove or replace it", decode, images, 1)
    assert hashes[0] != hashes[1]


def test_the_message_of_an_image_that_cannot_be_read_is_for_its_reader(tmp_path):
    (tmp_path / "text.png").write_text("no image")
    images = Files([str(tmp_path / "text.png")])
    for read in (decode, size_of):
        refused(r"text.png cannot be read as an image: unknown or damaged format \(known are JPEG", read, images, 0)


def make_list(folder, lines, name="train.txt"):
    (folder / name).write_text("\n".join(lines), encoding="utf-8")
    return name


def test_a_list_of_paths_and_labels(tmp_path):
    for i, name in enumerate(["train/n1/a b.png", "train/n2/c.png", "val/d.png"]):
        write(tmp_path / "images" / name, i)
    make_list(tmp_path, ["train/n1/a b.png 0", "", "train/n2/c.png\t4"])
    make_list(tmp_path, ["val/d.png 2  "], "test.txt")
    rows = load_list(str(tmp_path), path="train.txt", root="images")
    assert names(rows) == ["n1/a b.png", "n2/c.png"] and rows.num_classes == 5 and rows.num_train is None
    rows = load_list(str(tmp_path), path="train.txt", test_path="test.txt", root=str(tmp_path / "images"))
    np.testing.assert_array_equal(rows.labels, [0, 4, 2])
    assert rows.num_train == 2 and decode_all(rows.images).shape == (3, 6, 6, 3)
    (tmp_path / "images" / "own.txt").write_text("train/n2/c.png 1")  # beside the images: no root is needed
    assert load_list(str(tmp_path), path="images/own.txt", num_classes=9).num_classes == 9


@pytest.mark.parametrize(
    "lines, pattern",
    [
        (["a.png 0", "b.png one"], "train.txt, line 2: must be a path, a blank and a label, .* not 'b.png one'"),
        (["a.png"], "line 1: must be a path, a blank and a label"),
        (["a.png -1"], "an integer of at least 0, not 'a.png -1'"),
        (["a.png 1.5"], "an integer of at least 0"),
        (["a.png 99999999999999999999"], "an integer of at least 0"),
        (["a.png 7"], r"labels must be in \[0, 4\], but go up to 7"),
        ([""], "train.txt is empty"),
        (["a.png 0", "b.png 1", "c.png 1"], "2 of 3 files are missing, the first is .*b.png"),
    ],
)
def test_lists_that_are_wrong(tmp_path, lines, pattern):
    write(tmp_path / "a.png")
    make_list(tmp_path, lines)
    refused(pattern, load_list, str(tmp_path), path="train.txt", num_classes=5)


def test_missing_lists_and_roots(tmp_path):
    write(tmp_path / "a.png")
    make_list(tmp_path, ["a.png 0"])
    refused("'list:no.txt': there is no such file in the current directory", load_list, str(tmp_path), path="no.txt")
    refused("train.txt': no.txt: there is no such file", load_list, str(tmp_path), path="train.txt", test_path="no.txt")
    refused("root no: there is no such folder", load_list, str(tmp_path), path="train.txt", root="no")


@pytest.mark.parametrize("name, args", [("folder:zoo", {}), ("folder", {"path": "zoo"}), ("list:l.txt", {})])
def test_names_in_a_config(zoo, name, args):
    make_list(zoo, ["zoo/cat/a.bmp 0", "zoo/dog/b.png 1", "zoo/dog/a.jpg 1", "zoo/cat/z.PNG 0"], "l.txt")
    config = ConfigDict({**defaults().data.to_dict(), "name": name, "validation": 0.0})
    config.args = {**args, "mean": 0.2, "test": 0.5}
    data = load_dataset(config, str(zoo))
    assert data.images.shape[1:] == data.input_shape == (6, 6, 3) and data.images.dtype == np.uint8
    assert data.num_classes == 2 and set(data.splits) == {"train", "test"} and data.stored.mean == (0.2,)


@pytest.mark.parametrize("name", ["deep.png", "deep.tif", "deep.pgm"])
def test_grey_levels_of_16_bits_are_scaled(name, tmp_path):
    levels = np.arange(1024, dtype=np.uint16).reshape(32, 32) * 64
    if name.endswith("pgm"):
        (tmp_path / name).write_bytes(b"P5 32 32 65535\n" + levels.astype(">u2").tobytes())
    else:
        Image.fromarray(levels).save(tmp_path / name)
    decoded = np.asarray(decode(Files([str(tmp_path / name)], 1), 0))
    np.testing.assert_array_equal(decoded, np.round(levels / 257))


def tiff(levels, bits, photometric):
    """Returns the bytes of a grey TIFF image without compression, of levels that are packed already."""
    height, width, data = *levels.shape[:2], levels.tobytes()
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, height)]
    tags += [(279, len(data))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    header = b"II*\0" + struct.pack("<I", 8 + len(data))
    return header + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def test_tiff_images_of_12_bits_and_with_white_as_0_have_their_grey_levels(tmp_path):
    levels = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    first, second = levels[:, ::2], levels[:, 1::2]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=-1).astype(np.uint8)
    (tmp_path / "12.tif").write_bytes(tiff(packed.reshape(64, 96), 12, 1).replace(
        struct.pack("<HHII", 256, 4, 1, 96), struct.pack("<HHII", 256, 4, 1, 64)))  # fmt: skip
    (tmp_path / "white.tif").write_bytes(tiff(levels * 16, 16, 0))
    images = Files([str(tmp_path / name) for name in ("12.tif", "white.tif")], 1)
    np.testing.assert_array_equal(np.asarray(decode(images, 0)), np.round(levels / 4095 * 255))
    np.testing.assert_array_equal(np.asarray(decode(images, 1)), np.round((1 - levels * 16 / 65535) * 255))


@pytest.mark.parametrize("kind, words", [(np.int32, "32-bit"), (np.float32, "float")])
def test_grey_levels_of_32_bits_are_refused(kind, words, tmp_path):
    Image.fromarray(np.full((4, 4), 300, kind)).save(tmp_path / "deep.tif")
    refused(f"its grey levels are {words} numbers", decode, Files([str(tmp_path / "deep.tif")], 1), 0)


@pytest.fixture
def photos(tmp_path):
    """A folder of images of 4 x 6 pixels, one of which was taken with the camera on its side."""
    for i, name in enumerate(["cat/a.png", "cat/b.png", "dog/a.png", "dog/b.png"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        image = Image.fromarray(image_of(i)[:4])
        exif = image.getexif()
        exif[274] = 6 if name == "dog/b.png" else 1
        image.save(tmp_path / name, exif=exif)
    return tmp_path


def test_exif_turns_images_or_is_said_to_be_ignored_once(photos, caplog):
    data = defaults().data
    data.name, data.size, data.validation = f"folder:{photos}", 4, 0.0
    stored = load_dataset(data, "").images
    assert load_dataset(data, "").images is stored and stored.shape == (4, 4, 6, 3)
    assert [line.count("1 of 4 images") for line in caplog.messages] == [1]
    caplog.clear()
    data.exif = True
    turned = load_dataset(data, "").images
    expected = np.rot90(image_of(3)[:4], -1)  # orientation 6: to be turned by 90 degrees clockwise
    np.testing.assert_array_equal(decode(turned, 3), expected)
    np.testing.assert_array_equal(decode(turned, 0), image_of(0)[:4])
    assert [size_of(turned, row) for row in (0, 3)] == [(4, 6), (6, 4)] and not caplog.messages
    assert np.asarray(decode(pickle.loads(pickle.dumps(turned)), 3)).shape == (6, 4, 3)  # as workers get it


def test_exif_of_arrays_is_refused():
    data = defaults().data
    data.exif = True
    refused("config.data.exif: data set 'digits' is stored as an array", load_dataset, data, "")

"""Finds image files on disk, from one folder per class or from a list of paths and labels, and leaves them encoded."""

import os
import pathlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from absl import logging

from kdjax.bounded import files_outside
from kdjax.data import tfds_source
from kdjax.data.dataset import Rows, count_classes
from kdjax.data.encoded import MODES, Files
from kdjax.errors import UserError, nearest

SUFFIXES = frozenset(".jpg .jpeg .png .bmp .gif .webp .ppm .pgm .tif .tiff".split())
HELD_OUT = ("test", "val", "validation", "valid")  # the first of these folders that has labels is the test split
# Names of folders that elsewhere hold splits. In other letters than those above they would be taken for classes.
LIKE_SPLITS = frozenset((*HELD_OUT, "train", "training", "testing", "dev", "eval", "evaluation"))
ANNOTATIONS = "val_annotations.txt"  # Tiny-ImageNet's table; on each line a file, its class, and a box of four numbers
TINY_IMAGENET = "tiny-imagenet-200"


def load_folder(data_dir: str, *, path: str, channels: int = 3, test: float = 0.2) -> Rows:
    """Finds the images of `PATH/CLASS/*`, or of `PATH/train/CLASS/*` and `PATH/{test,val,validation}/CLASS/*`.

    Classes and files are sorted by name, and folders inside a class belong to it. Hidden files and files without the
    suffix of an image are ignored. If PATH/test has none of the classes of PATH/train, PATH/val is the test split.

    Args:
      data_dir: Directory in which a relative path is looked for, after the current directory.
      path: Path of the folder.
      channels: Number of channels, 1 or 3, to which every image is converted.
      test: Fraction of the images that is drawn as the test split, if there is no folder of test images.

    Raises:
      UserError: The folder is missing, it has fewer than two classes, a class has no images, or a class of the test
        split is not in the training split.
    """
    where = f"data set 'folder:{path}'"
    root = find(path, data_dir, where, pathlib.Path.is_dir)
    _check_channels(channels, where)
    is_split = bool(_folders(root / "train"))
    train = root / "train" if is_split else root
    classes = _classes(train, where)
    paths, labels = _images(train, classes, where)
    held_out = _held_out(root, classes, where) if is_split else None
    if held_out is None:
        _refuse_unread_split(root if is_split else None, where)
        return Rows(Files(paths, channels), labels, None, len(classes), test=test, class_names=classes)
    test_paths, test_labels = _held_out_images(held_out, classes, where)
    images, all_labels = Files(paths + test_paths, channels), np.concatenate([labels, test_labels])
    return Rows(images, all_labels, None, len(classes), len(paths), test, classes)


def load_list(
    data_dir: str,
    *,
    path: str,
    test_path: str = "",
    root: str = "",
    num_classes: int | None = None,
    channels: int = 3,
    test: float = 0.2,
) -> Rows:
    """Reads a text file that has the path of an image, a blank and its label on each line, as ImageNet-LT's lists do.

    Args:
      data_dir: Directory in which relative `path`, `test_path` and `root` are looked for, after the current directory.
      path: Path of the list of training images.
      test_path: Path of the list of test images, '' for none.
      root: Folder that the paths in the lists are relative to, '' for the folder of each list.
      num_classes: Number of classes; by default the largest label + 1.
      channels: Number of channels, 1 or 3, to which every image is converted.
      test: Fraction of the images that is drawn as the test split, if there is no test_path.

    Raises:
      UserError: A list or a file is missing, a line has no path or no label, or a label is out of range.
    """
    where = f"data set 'list:{path}'"
    _check_channels(channels, where)
    folder = find(root, data_dir, f"{where}: root {root}", pathlib.Path.is_dir) if root else None
    parts = [_read_list(part, data_dir, folder, where) for part in (path, test_path) if part]
    paths = [name for names, _ in parts for name in names]
    labels = np.concatenate([labels for _, labels in parts])
    most = int(labels.max()) + 1 if num_classes is not None else count_classes(labels, where)
    if num_classes is not None and num_classes < most:
        raise UserError(f"{where}: labels must be in [0, {num_classes - 1}], but go up to {most - 1}.")
    _check_files(paths, where)
    num_train = len(parts[0][0]) if test_path else None
    return Rows(Files(paths, channels), labels, None, num_classes or most, num_train, test)


def load_tiny_imagenet(data_dir: str) -> Rows:
    """Reads Tiny-ImageNet from the folder `tiny-imagenet-200`; its 10,000 validation images are the test split.

    Raises:
      UserError: The folder is not in `data_dir`. The message says how to get it.
    """
    if not pathlib.Path(data_dir, TINY_IMAGENET).is_dir():
        line = tfds_source.how_to_prepare("tiny_imagenet", data_dir)
        raise UserError(f"data set 'tiny_imagenet' is not in {data_dir}; {line}")
    return load_folder(data_dir, path=str(pathlib.Path(data_dir, TINY_IMAGENET).absolute()))


def load_imagenet(data_dir: str) -> Rows:
    """Reads ImageNet-1k from the folder `imagenet` (train/CLASS/*, val/CLASS/*), or else from a prepared imagenet2012.

    Raises:
      UserError: Neither is in `data_dir`. The message says where to get it.
    """
    if pathlib.Path(data_dir, "imagenet", "train").is_dir():
        return load_folder(data_dir, path=str(pathlib.Path(data_dir, "imagenet").absolute()))
    if tfds_source.is_there(data_dir, "imagenet2012"):
        return tfds_source.load_tfds(data_dir, name="imagenet2012")
    raise UserError(
        f"data set 'imagenet' is not in {data_dir}: put there a folder imagenet with train/CLASS/* and val/CLASS/* "
        f"(from image-net.org, which needs a login), or {tfds_source.how_to_prepare('tfds:imagenet2012', data_dir)}"
    )


def find(path: str, data_dir: str, where: str, is_right: Callable[[pathlib.Path], bool]) -> pathlib.Path:
    """Returns the first of `path` in the current directory and in `data_dir` for which `is_right(path)` holds.

    Raises:
      UserError: Neither is right.
    """
    # os.path leaves a path with '~' as it is where the user has no home folder; pathlib fails.
    candidates = (pathlib.Path(os.path.expanduser(path)), pathlib.Path(data_dir, path))
    found = next((candidate for candidate in candidates if is_right(candidate)), None)
    if found is None:
        kind = "folder" if is_right is pathlib.Path.is_dir else "file"
        raise UserError(f"{where}: there is no such {kind} in the current directory or in {data_dir}.")
    return found


def _check_channels(channels: int, where: str) -> None:
    if channels not in MODES or not isinstance(channels, int) or isinstance(channels, bool):
        raise UserError(f"{where}: channels must be 1 or 3, not {channels!r}.")


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__"))  # such as .ipynb_checkpoints, ._photo.jpg and __MACOSX


def _folders(folder: pathlib.Path) -> tuple[str, ...]:
    if not folder.is_dir():
        return ()
    return tuple(sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not _is_hidden(entry.name)))


def _classes(folder: pathlib.Path, where: str) -> tuple[str, ...]:
    classes = _folders(folder)
    if classes and all(name.casefold() in LIKE_SPLITS for name in classes):
        raise UserError(
            f"{where}: the folders of {folder} ({', '.join(classes)}) are named like splits, not like classes; rename "
            "them to 'train' and 'test', which have a folder for each class, or give the classes other names."
        )
    if len(classes) < 2:
        have = f"only '{classes[0]}'" if classes else "none"
        raise UserError(f"{where}: {folder} must have at least two folders, one per class; it has {have}.")
    return classes


def _images(folder: pathlib.Path, classes: Sequence[str], where: str) -> tuple[list[str], np.ndarray]:
    """Returns paths and labels, sorted by class and then by name."""
    paths, counts = [], []
    for name in classes:
        found = sorted(_images_under(folder / name))
        if not found:
            suffixes = " ".join(sorted(SUFFIXES))
            raise UserError(f"{where}: class '{name}' has no images in {folder / name} (files with {suffixes}).")
        paths += found
        counts.append(len(found))
    if outside := files_outside(paths, folder):
        line = "%s: %d of the images are links that lead out of %s, the first is %s."
        logging.warning(line, where, len(outside), folder, outside[0])
    return paths, np.repeat(np.arange(len(classes), dtype=np.int32), counts)


def _images_under(folder: pathlib.Path) -> Iterable[str]:
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not _is_hidden(name)]
        for name in files:
            if os.path.splitext(name)[1].lower() in SUFFIXES and not _is_hidden(name):
                yield os.path.join(parent, name)


def _held_out(root: pathlib.Path, classes: Sequence[str], where: str) -> pathlib.Path | None:
    """Returns the folder of the test split, or None; folders that have labels come before others."""
    there = [root / name for name in HELD_OUT if (root / name).is_dir()]
    labelled = [f for f in there if (f / ANNOTATIONS).is_file() or set(_folders(f)) & set(classes)]
    found = next(iter(labelled + there), None)
    if found and not _folders(found):
        line = f"sort its images into folders, or use folder:{root / 'train'}, of which a test split is drawn"
        raise UserError(f"{where}: {found} has no folders of classes; {line}.")
    return found


def _refuse_unread_split(root: pathlib.Path | None, where: str) -> None:
    """Refuses a folder beside 'train' whose name says that it is a split, in letters that are not read."""
    names = [name for name in (_folders(root) if root else ()) if name.casefold() in LIKE_SPLITS and name != "train"]
    if names:
        raise UserError(f"{where}: {root} has 'train' and '{names[0]}', which is not read; rename it to 'test'.")


def _held_out_images(folder: pathlib.Path, classes: Sequence[str], where: str) -> tuple[list[str], np.ndarray]:
    if (folder / ANNOTATIONS).is_file():
        return _annotated(folder, classes, where)
    names = _folders(folder)
    _check_known(names, classes, folder, where)
    paths, labels = _images(folder, names, where)
    return paths, np.array([classes.index(name) for name in names], np.int32)[labels]


def _annotated(folder: pathlib.Path, classes: Sequence[str], where: str) -> tuple[list[str], np.ndarray]:
    """Reads Tiny-ImageNet's validation images, which are all in one folder, with a table of their classes."""
    lines = (folder / ANNOTATIONS).read_text(encoding="utf-8").splitlines()
    table = sorted(line.split("\t")[:2] for line in lines if line.strip())
    if not table or min(map(len, table)) < 2:
        raise UserError(
            f"{where}: {folder / ANNOTATIONS} must have a file, a tab and the class of the file on each line."
        )
    _check_known([name for _, name in table], classes, folder / ANNOTATIONS, where)
    paths = [str(folder / "images" / file) for file, _ in table]
    _check_files(paths, where)
    number = {name: i for i, name in enumerate(classes)}
    return paths, np.array([number[name] for _, name in table], np.int32)


def _check_known(names: Iterable[str], classes: Sequence[str], folder: pathlib.Path, where: str) -> None:
    unknown = sorted(set(names) - set(classes))
    if unknown:
        many = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        hint = nearest(unknown[0], classes) if len(classes) < 20 else ""
        raise UserError(f"{where}: {folder} has class '{unknown[0]}'{many}, which the training split lacks.{hint}")


def _read_list(path: str, data_dir: str, root: pathlib.Path | None, where: str) -> tuple[list[str], np.ndarray]:
    file = find(path, data_dir, where if where.endswith(f"{path}'") else f"{where}: {path}", pathlib.Path.is_file)
    folder, paths, labels = root or file.parent, [], []
    with open(file, encoding="utf-8-sig", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                name, label = _path_and_label(line, f"{file}, line {number}")
                paths.append(os.path.join(folder, name))
                labels.append(label)
    if not paths:
        raise UserError(f"{where}: {file} is empty; it must have a path and a label on each line.")
    return paths, np.array(labels, np.int32)


def _path_and_label(line: str, where: str) -> tuple[str, int]:
    path, label = line.strip().rsplit(None, 1) if len(line.split()) > 1 else ("", "")
    if not path or not (label.isascii() and label.isdigit()) or int(label) >= 2**31 - 1:
        raise UserError(
            f"{where}: must be a path, a blank and a label, an integer of at least 0, not '{line.strip()}'."
        )
    return path.strip(), int(label)


def _check_files(paths: Sequence[str], where: str) -> None:
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        raise UserError(f"{where}: {len(missing)} of {len(paths)} files are missing, the first is {missing[0]}.")

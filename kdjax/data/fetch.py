"""Data sets from their publishers: what `python -m kdjax.prepare_data NAME` downloads, checks and unpacks, once."""

import importlib.util
import logging
import os
import pathlib
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from kdjax.data import cifar
from kdjax.data.cifar10h import load_cifar10h
from kdjax.data.folders import TINY_IMAGENET, load_imagenet
from kdjax.errors import UserError, nearest


class File(NamedTuple):
    """One file to download.

    Attributes:
      url: where it is; its last part is the file's name.
      hash: 'md5:...'; None where none was published, and then `check` looks at the content.
      folder: what it unpacks to; where that is in data_dir already, nothing is to be done.
      unpack: whether it is unpacked; kdjax reads some archives as they are.
      check: `(path)` raises UserError where a new file is not what it should be.
    """

    url: str
    hash: str | None = None
    folder: str = ""
    unpack: bool = False
    check: Callable[[pathlib.Path], Any] | None = None


class Recipe(NamedTuple):
    """How a data set comes to lie in data_dir.

    Attributes:
      files: to download.
      tfds: name of a set that tensorflow-datasets prepares, '' for none.
      tensorflow: whether that is known to need TensorFlow, so that it is asked for before anything is downloaded.
      needs: names of other recipes, which come first.
      by_hand: `(data_dir)` says in a UserError what to do where the set is not there and cannot be downloaded.
      note: printed at the end.
    """

    files: tuple[File, ...] = ()
    tfds: str = ""
    tensorflow: bool = False
    needs: tuple[str, ...] = ()
    by_hand: Callable[[str], Any] | None = None
    note: str = ""


def _check_cifar10h(path: pathlib.Path) -> None:
    load_cifar10h(str(path.parent), labels=str(path))


HUMAN_LABELS = "https://raw.githubusercontent.com/jcpeterson/cifar-10h/master/data/"
LICENCE = (
    "CIFAR-10H (Peterson et al., 2019): CC BY-NC-SA 4.0, for research, not to be redistributed with other software."
)

CHUNK = 1 << 14  # bytes; of a connection that breaks, less than this is lost
NO_TENSORFLOW = "No module named 'tensorflow"

RECIPES: dict[str, Recipe] = {
    "cifar10": Recipe(
        (File(cifar.URL + "cifar-10-python.tar.gz", "md5:c58f30108f718f92721af3b95e74349a", "cifar-10-batches-py"),)
    ),
    "cifar100": Recipe(
        (File(cifar.URL + "cifar-100-python.tar.gz", "md5:eb9058c3a382ffc7106e4002c42a8d85", "cifar-100-python"),)
    ),
    "cifar10h": Recipe(
        tuple(File(HUMAN_LABELS + f"cifar10h-{kind}.npy", check=_check_cifar10h) for kind in ("probs", "counts")),
        needs=("cifar10",),
        note=LICENCE,
    ),
    "tiny_imagenet": Recipe(
        (
            File(
                "http://cs231n.stanford.edu/tiny-imagenet-200.zip", "md5:90528d7ca1a48142e341f4ef8d21d0de",
                TINY_IMAGENET, unpack=True,
            ),
        )
    ),
    "imagenet": Recipe(by_hand=load_imagenet),
    "svhn": Recipe(tfds="svhn_cropped", tensorflow=True),
    "stl10": Recipe(tfds="stl10", tensorflow=True),
    "fashion_mnist": Recipe(tfds="fashion_mnist", tensorflow=True),
}  # fmt: skip


def prepare(name: str, data_dir: str, say: Callable[[str], None] = print) -> None:
    """Puts a data set into `data_dir`, or says that it is there.

    Args:
      name: a row of RECIPES, or 'tfds:NAME' for a set that tensorflow-datasets prepares.
      data_dir: made where it is not there.
      say: is told each thing that was done.

    Raises:
      UserError: an unknown name, no network, a download that broke off (the next call goes on with it) or is not what
        was published, an archive that would write outside its folder, or TensorFlow is needed.
    """
    recipe = _recipe(name)
    folder = pathlib.Path(data_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for other in recipe.needs:
        prepare(other, data_dir, say)
    for file in recipe.files:
        _fetch(file, folder, say)
    if recipe.tfds:
        _prepare_tfds(recipe, data_dir, say)
    if recipe.by_hand:
        recipe.by_hand(data_dir)
        say(f"{name} is in {data_dir}.")
    if recipe.note:
        say(recipe.note)


def _recipe(name: str) -> Recipe:
    if name.startswith("tfds:"):
        own = name.removeprefix("tfds:")
        return next((recipe for recipe in RECIPES.values() if recipe.tfds == own), Recipe(tfds=own))
    if name not in RECIPES:
        raise UserError(f"prepare_data knows no data set '{name}'.{nearest(name, RECIPES)} Or 'tfds:NAME'.")
    return RECIPES[name]


def _fetch(file: File, data_dir: pathlib.Path, say: Callable[[str], None]) -> None:
    path = data_dir / file.url.rpartition("/")[2]
    if file.folder and (data_dir / file.folder).is_dir():
        say(f"{data_dir / file.folder} is there: nothing to do.")
        return
    if _is_whole(path, file.hash):
        say(f"{path} is there and whole.")
    else:
        say(f"downloading {file.url}")
        _download(file, path)
    if file.unpack:
        unpack(path, data_dir / file.folder)
        path.unlink()
        say(f"unpacked to {data_dir / file.folder}")


def _is_whole(path: pathlib.Path, known_hash: str | None) -> bool:
    import pooch

    if not path.is_file() or known_hash is None:
        return path.is_file()
    kind, _, value = known_hash.partition(":")
    return pooch.file_hash(str(path), alg=kind) == value


def _download(file: File, path: pathlib.Path) -> None:
    """Downloads to another name first, so that only what is whole and right ever has the file's own."""
    import pooch
    import requests

    pooch.get_logger().setLevel("WARNING")
    part = path.with_name(f"{path.name}.part")
    try:
        pooch.retrieve(file.url, file.hash, fname=path.name, path=path.parent, downloader=Resumed(part))
    except (requests.RequestException, EOFError) as error:
        how = f"run this again, or put it there by hand as {path}"
        if part.is_file():
            how = f"{part.stat().st_size:,} bytes are kept, run this again to go on"
        raise UserError(f"{file.url} could not be fetched ({_short(error)}): {how}.") from error
    except ValueError as error:  # pooch's word for another hash
        raise UserError(f"{file.url} is not what was published ({_short(error)}): it was removed.") from error
    if file.check:
        try:
            file.check(path)
        except UserError:
            path.unlink()
            raise


class Resumed:
    """A downloader for pooch that goes on where an earlier one stopped: what has come so far lies in `part`."""

    def __init__(self, part: pathlib.Path):
        self.part = part

    def __call__(self, url: str, output_file: str, pooch: Any) -> None:
        """Downloads all of `url` or raises requests.RequestException or EOFError, keeping what has come."""
        import requests

        have = self.part.stat().st_size if self.part.is_file() else 0
        # Lengths are those of the file only where it is sent as it is.
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        with requests.get(url, headers=headers, stream=True, timeout=60) as answer:
            if answer.status_code == requests.codes.requested_range_not_satisfiable:
                self._finish(_length(answer) == have, output_file)
                return
            answer.raise_for_status()
            self._receive(answer, have if answer.status_code == requests.codes.partial_content else 0)
        self.part.replace(output_file)

    def _finish(self, is_whole: bool, output_file: str) -> None:
        """Takes a part that the server has nothing to add to."""
        if not is_whole:
            self.part.unlink()
            raise EOFError("what was kept is no part of it")
        self.part.replace(output_file)

    def _receive(self, answer: Any, have: int) -> None:
        from tqdm import tqdm

        left = int(answer.headers.get("Content-Length", 0))
        bar = tqdm(total=have + left or None, initial=have, unit="B", unit_scale=True, disable=None, leave=False)
        with bar, open(self.part, "ab" if have else "wb") as out:
            for chunk in answer.iter_content(CHUNK):
                out.write(chunk)
                bar.update(len(chunk))
            if out.tell() < have + left:
                raise EOFError(f"it broke off after {out.tell():,} of {have + left:,} bytes")


def _length(answer: Any) -> int:
    total = answer.headers.get("Content-Range", "").rpartition("/")[2]
    return int(total) if total.isdigit() else -1


def unpack(archive: pathlib.Path, folder: pathlib.Path) -> None:
    """Unpacks a .zip or .tar archive, in which all lies in one folder, so that it becomes `folder`.

    Raises:
      UserError: it is damaged, lacks that folder, or has links or names that climb out; then nothing was written.
    """
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        (_unzip if archive.suffix == ".zip" else _untar)(archive, part)
        if not (part / folder.name).is_dir():
            raise UserError(f"{archive} has no folder {folder.name}.")
        os.replace(part / folder.name, folder)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise UserError(f"{archive} is damaged ({_short(error)}): remove it and run this again.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _unzip(archive: pathlib.Path, folder: pathlib.Path) -> None:
    with zipfile.ZipFile(archive) as members:
        for info in members.infolist():
            _check_member(info.filename, not stat.S_ISLNK(info.external_attr >> 16), archive)
        for info in _progress(members.infolist()):
            members.extract(info, folder)


def _untar(archive: pathlib.Path, folder: pathlib.Path) -> None:
    with tarfile.open(archive) as members:
        for member in members.getmembers():
            _check_member(member.name, member.isfile() or member.isdir(), archive)
        for member in _progress(members.getmembers()):
            members.extract(member, folder, filter="data")


def _check_member(name: str, is_plain: bool, archive: pathlib.Path) -> None:
    path = pathlib.PureWindowsPath(name)  # knows both kinds of slashes, and drives
    if not is_plain or path.anchor or ".." in path.parts:
        raise UserError(f"{archive} has '{name}', which is a link or leaves its folder: nothing was unpacked.")


def _progress(members: Iterable) -> Iterable:
    from tqdm import tqdm

    return tqdm(members, unit="file", disable=None, leave=False)


def _prepare_tfds(recipe: Recipe, data_dir: str, say: Callable[[str], None]) -> None:
    """Lets tensorflow-datasets download and write a set in the form that is read without TensorFlow."""
    import tensorflow_datasets as tfds

    logging.getLogger("urllib3").setLevel(logging.ERROR)  # it warns of each of many attempts
    name = recipe.tfds
    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
        if builder.is_prepared():
            say(f"{builder.data_path} is there: nothing to do.")
            return
        if recipe.tensorflow and importlib.util.find_spec("tensorflow") is None:
            raise ModuleNotFoundError(NO_TENSORFLOW)
        say(f"tensorflow-datasets prepares {name}")
        builder.download_and_prepare()
    except Exception as error:  # of the set's own code, of the network, of a file system: each raises its own kind
        if NO_TENSORFLOW in str(error):
            line = f"to write '{name}' (reading it needs none): pip install 'kdjax[tf]', then run this again."
            raise UserError(f"tensorflow-datasets needs TensorFlow {line}") from error
        first = (str(error).splitlines() or [""])[0]
        raise UserError(f"tensorflow-datasets could not prepare '{name}' in {data_dir}: {first}") from error
    say(f"{name} is in {builder.data_path}")


def _short(error: Exception) -> str:
    line = " ".join(str(error).split()) or type(error).__name__
    return line if len(line) <= 300 else line[:297] + "..."

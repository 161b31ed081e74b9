"""What `python -m kdjax.prepare_data NAME` downloads, checks and unpacks for each data set."""

import importlib.util
import logging
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

from kdjax.data import cifar
from kdjax.data.archives import unpack
from kdjax.data.cifar10h import load_cifar10h
from kdjax.data.download import File, download, is_whole
from kdjax.data.folders import TINY_IMAGENET, load_imagenet
from kdjax.errors import UserError, nearest


class Recipe(NamedTuple):
    """How to prepare a data set.

    Attributes:
      files: Files to download.
      tfds: Name of a set that tensorflow-datasets prepares, '' for none.
      tensorflow: Whether tensorflow-datasets is known to need TensorFlow for the set; it is then looked for before
        anything is downloaded.
      needs: Names of other recipes, which are prepared first.
      by_hand: Function `(data_dir)` for a set that cannot be downloaded. If the set is not there, it raises a UserError
        that says how to get it.
      note: Text that is printed at the end.
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
    """Downloads a data set into `data_dir`, or says that it is already there.

    Args:
      name: A row of RECIPES, or 'tfds:NAME' for a set that tensorflow-datasets prepares.
      data_dir: Directory of the data; it is made if it does not exist.
      say: Function that is called with one line for each step.

    Raises:
      UserError: The name is unknown; there is no network; a download was interrupted (the next call resumes it) or is
        not the published file; an archive has paths that lead out of its folder; or TensorFlow is needed.
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
    if not name:
        names = ", ".join(sorted(RECIPES))
        raise UserError(
            f"name a data set, as in python -m kdjax.prepare_data cifar100. There are: {names}; or tfds:NAME."
        )
    if name not in RECIPES:
        raise UserError(f"prepare_data knows no data set '{name}'.{nearest(name, RECIPES)} Or use 'tfds:NAME'.")
    return RECIPES[name]


def _fetch(file: File, data_dir: pathlib.Path, say: Callable[[str], None]) -> None:
    path = data_dir / file.url.rpartition("/")[2]
    if file.folder and (data_dir / file.folder).is_dir():
        say(f"{data_dir / file.folder} is there: nothing to do.")
        return
    if is_whole(path, file.hash):
        say(f"{path} is there and complete.")
    else:
        say(f"downloading {file.url}")
        download(file, path)
    if file.unpack:
        unpack(path, data_dir / file.folder)
        path.unlink()
        say(f"unpacked to {data_dir / file.folder}")


def _prepare_tfds(recipe: Recipe, data_dir: str, say: Callable[[str], None]) -> None:
    """Has tensorflow-datasets download a set and write it in the file format that can be read without TensorFlow."""
    import tensorflow_datasets as tfds

    logging.getLogger("urllib3").setLevel(logging.ERROR)  # it warns about each of many attempts
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
    except Exception as error:  # the set's own code, the network and the file system raise types of their own
        if NO_TENSORFLOW in str(error):
            line = f"to write '{name}' (reading it does not): pip install 'kdjax[tf]', then run this again."
            raise UserError(f"tensorflow-datasets needs TensorFlow {line}") from error
        first = (str(error).splitlines() or [""])[0]
        raise UserError(f"tensorflow-datasets could not prepare '{name}' in {data_dir}: {first}") from error
    say(f"{name} is in {builder.data_path}")

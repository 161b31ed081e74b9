"""Unpacks archives that others made, of which nothing may be written outside their folder."""

import os
import pathlib
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterable
from typing import TypeVar

from kdjax.errors import UserError

T = TypeVar("T")


def unpack(archive: pathlib.Path, folder: pathlib.Path) -> None:
    """Unpacks a .zip or .tar archive, whose files are all in a folder of the same name as `folder`, to `folder`.

    Args:
      archive: Path of the archive.
      folder: Folder to make. It appears only when the archive is unpacked completely.

    Raises:
      UserError: The archive is damaged, has no such folder, or has links or paths that lead out of it; then nothing was
        written.
    """
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        (_unzip if archive.suffix == ".zip" else _untar)(archive, part)
        if not (part / folder.name).is_dir():
            raise UserError(f"{archive} has no folder {folder.name}.")
        os.replace(part / folder.name, folder)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise UserError(f"{archive} is damaged ({shortened(error)}): remove it and run this again.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def shortened(error: Exception) -> str:
    """Returns the text of an exception on one line of at most 300 characters."""
    line = " ".join(str(error).split()) or type(error).__name__
    return line if len(line) <= 300 else line[:297] + "..."


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
    path = pathlib.PureWindowsPath(name)  # recognizes both kinds of slashes, and drive letters
    if not is_plain or path.anchor or ".." in path.parts:
        raise UserError(f"{archive} has '{name}', which is a link or leads out of its folder: nothing was unpacked.")


def _progress(members: Iterable[T]) -> Iterable[T]:
    from tqdm import tqdm

    return tqdm(members, unit="file", disable=None, leave=False)

"""Downloads single files, resumes downloads that were interrupted, and checks what was downloaded."""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

from kdjax.data.archives import shortened
from kdjax.errors import UserError

CHUNK = 1 << 14  # bytes; an interrupted download loses less than one chunk


class File(NamedTuple):
    """One file to download.

    Attributes:
      url: Address of the file; its last part is the name of the file.
      hash: Published hash, such as 'md5:...'; None if there is none, and then `check` examines the file.
      folder: Folder that the file unpacks to. If the directory of the data has it, the file is not downloaded.
      unpack: Whether to unpack the file; kdjax reads some archives without unpacking them.
      check: Function `(path)` that raises UserError if a new file is not the right one.
    """

    url: str
    hash: str | None = None
    folder: str = ""
    unpack: bool = False
    check: Callable[[pathlib.Path], Any] | None = None


def is_whole(path: pathlib.Path, known_hash: str | None) -> bool:
    """Returns whether a file is there and has the published hash, if there is one."""
    import pooch

    if not path.is_file() or known_hash is None:
        return path.is_file()
    kind, _, value = known_hash.partition(":")
    return pooch.file_hash(str(path), alg=kind) == value


def download(file: File, path: pathlib.Path) -> None:
    """Downloads a file. It gets its own name only after it is complete and its hash is right.

    Args:
      file: File to download.
      path: Path to write.

    Raises:
      UserError: The download failed (the next call resumes it), or the file is not the one that was published.
    """
    import pooch
    import requests

    pooch.get_logger().setLevel("WARNING")
    part = path.with_name(f"{path.name}.part")
    try:
        pooch.retrieve(file.url, file.hash, fname=path.name, path=path.parent, downloader=Resumed(part))
    except (requests.RequestException, EOFError) as error:
        how = f"run this again, or put it there by hand as {path}"
        if part.is_file():
            how = f"{part.stat().st_size:,} bytes are kept, run this again to resume"
        raise UserError(f"{file.url} could not be downloaded ({shortened(error)}): {how}.") from error
    except ValueError as error:  # pooch raises this for a wrong hash
        raise UserError(f"{file.url} is not what was published ({shortened(error)}): it was removed.") from error
    if file.check:
        try:
            file.check(path)
        except UserError:
            path.unlink()
            raise


class Resumed:
    """A downloader for pooch that resumes an interrupted download.

    Args:
      part: Path of the file that keeps the bytes received so far.
    """

    def __init__(self, part: pathlib.Path):
        self.part = part

    def __call__(self, url: str, output_file: str, pooch: Any) -> None:
        """Downloads all of `url`, or raises requests.RequestException or EOFError and keeps the bytes received."""
        import requests

        have = self.part.stat().st_size if self.part.is_file() else 0
        # Without an encoding, since lengths would otherwise be those of the encoded bytes.
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        with requests.get(url, headers=headers, stream=True, timeout=60) as answer:
            if answer.status_code == requests.codes.requested_range_not_satisfiable:
                self._finish(_length(answer) == have, output_file)
                return
            answer.raise_for_status()
            self._receive(answer, have if answer.status_code == requests.codes.partial_content else 0)
        self.part.replace(output_file)

    def _finish(self, is_whole: bool, output_file: str) -> None:
        """Handles the server's answer that it has no further bytes."""
        if not is_whole:
            self.part.unlink()
            raise EOFError("the bytes that were kept are not a part of it")
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
                raise EOFError(f"the connection ended after {out.tell():,} of {have + left:,} bytes")


def _length(answer: Any) -> int:
    total = answer.headers.get("Content-Range", "").rpartition("/")[2]
    return int(total) if total.isdigit() else -1

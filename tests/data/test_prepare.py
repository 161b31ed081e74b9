"""prepare_data with a local server: files are complete or absent, downloads resume, and nothing leaves its folder."""

import hashlib
import http.server
import io
import pathlib
import sys
import tarfile
import threading
import zipfile

import numpy as np
import pytest
from ml_collections import ConfigDict

from kdjax import cli, prepare_data
from kdjax.config import defaults
from kdjax.data import cifar10h, load_dataset
from kdjax.data import prepare as preparing
from kdjax.data.archives import unpack
from kdjax.data.download import CHUNK, File
from kdjax.data.prepare import Recipe, prepare
from kdjax.errors import UserError
from tests.data.test_cifar import content, files_of, pack
from tests.data.test_cifar import unpack as unpack_cifar
from tests.data.test_cifar10h import counts_of

ARCHIVE = "cifar-100-python.tar.gz"


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves ranges of bytes, and ends the connection after `server.limit` bytes."""

    def do_GET(self):
        body = self.server.content.get(self.path.lstrip("/"))
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        self.server.asked.append((self.path.lstrip("/"), start))
        if body is None or (start and start >= len(body)):
            self.send_response(404 if body is None else 416)
            self.send_header("Content-Range", f"bytes */{len(body or b'')}")
            self.end_headers()
            return
        ranged = start and self.server.knows_ranges
        rest = body[start:] if ranged else body
        self.send_response(206 if ranged else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        self.wfile.write(rest[: self.server.limit])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.content, httpd.asked, httpd.limit, httpd.knows_ranges = {}, [], None, True
        httpd.url = f"http://127.0.0.1:{httpd.server_address[1]}/"
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield httpd
        httpd.shutdown()
        thread.join()


def md5(data):
    return f"md5:{hashlib.md5(data).hexdigest()}"


@pytest.fixture
def cifar100(server, tmp_path, monkeypatch):
    """Puts a CIFAR-100 archive in the original format on the server and into RECIPES."""
    (tmp_path / "published").mkdir()
    pack(tmp_path / "published", ARCHIVE, files_of("cifar100", ARCHIVE))
    data = server.content[ARCHIVE] = (tmp_path / "published" / ARCHIVE).read_bytes()
    recipe = Recipe((File(server.url + ARCHIVE, md5(data), "cifar-100-python"),))
    monkeypatch.setitem(preparing.RECIPES, "cifar100", recipe)
    return data


def refused(pattern, call, *args):
    with pytest.raises(UserError, match=pattern) as caught:
        call(*args)
    assert "\n" not in str(caught.value)


def names(folder):
    return sorted(path.name for path in pathlib.Path(folder).iterdir())


def test_cifar100_from_a_server_to_a_data_set(server, cifar100, tmp_path, capsys):
    folder = tmp_path / "new" / "data"
    prepare("cifar100", str(folder))
    assert names(folder) == [ARCHIVE] and f"downloading {server.url}" in capsys.readouterr().out
    data = load_dataset(ConfigDict({**defaults().data.to_dict(), "name": "cifar100", "validation": 0.0}), str(folder))
    images, labels = (np.concatenate(parts) for parts in zip(*content("cifar100"), strict=True))
    np.testing.assert_array_equal(data.images, images)
    np.testing.assert_array_equal(data.labels, labels)
    prepare("cifar100", str(folder))  # a second call says that there is nothing to do
    assert "is there and complete" in capsys.readouterr().out and len(server.asked) == 1


def test_an_interrupted_download_is_resumed(server, cifar100, tmp_path):
    server.limit = CHUNK + 100
    refused("16,384 bytes are kept, run this again to resume", prepare, "cifar100", str(tmp_path))
    assert not (tmp_path / ARCHIVE).exists()
    server.limit = None
    prepare("cifar100", str(tmp_path))
    assert (tmp_path / ARCHIVE).read_bytes() == cifar100
    assert [start for _, start in server.asked] == [0, CHUNK] and names(tmp_path) == [ARCHIVE, "published"]


def test_a_server_without_ranges_sends_everything_again(server, cifar100, tmp_path):
    (tmp_path / f"{ARCHIVE}.part").write_bytes(b"x" * 100)
    server.knows_ranges = False
    prepare("cifar100", str(tmp_path))
    assert (tmp_path / ARCHIVE).read_bytes() == cifar100


def test_a_kept_part_that_is_complete_or_too_long(server, cifar100, tmp_path):
    (tmp_path / f"{ARCHIVE}.part").write_bytes(cifar100)
    prepare("cifar100", str(tmp_path))
    (tmp_path / ARCHIVE).rename(tmp_path / f"{ARCHIVE}.part")
    with open(tmp_path / f"{ARCHIVE}.part", "ab") as part:
        part.write(b"more")
    refused("the bytes that were kept are not a part of it", prepare, "cifar100", str(tmp_path))
    prepare("cifar100", str(tmp_path))
    assert (tmp_path / ARCHIVE).read_bytes() == cifar100


def test_a_file_with_another_hash_is_removed(server, cifar100, tmp_path):
    server.content[ARCHIVE] = cifar100[:-1] + b"x"
    refused("is not what was published .*MD5.*: it was removed", prepare, "cifar100", str(tmp_path))
    assert names(tmp_path) == ["published"]


def test_a_partial_file_under_the_right_name_is_replaced(cifar100, tmp_path):
    (tmp_path / ARCHIVE).write_bytes(cifar100[:100])
    prepare("cifar100", str(tmp_path))
    assert (tmp_path / ARCHIVE).read_bytes() == cifar100


def test_a_set_that_is_already_unpacked_is_not_changed(server, cifar100, tmp_path, capsys):
    unpack_cifar(tmp_path, ARCHIVE, files_of("cifar100", ARCHIVE))
    prepare("cifar100", str(tmp_path))
    assert "nothing to do" in capsys.readouterr().out and not server.asked


def test_missing_files_and_unreachable_servers(server, cifar100, tmp_path, monkeypatch):
    server.content.clear()
    refused("could not be downloaded .*404.*put it there by hand as", prepare, "cifar100", str(tmp_path))
    monkeypatch.setitem(preparing.RECIPES, "cifar100", Recipe((File("http://127.0.0.1:9/x.tar", "md5:0"),)))
    refused("could not be downloaded .*by hand as .*x.tar", prepare, "cifar100", str(tmp_path))
    refused("knows no data set 'cifar1000'. Did you mean 'cifar100'", prepare, "cifar1000", str(tmp_path))


def test_human_labels_are_checked_by_their_content(server, tmp_path, monkeypatch, capsys):
    archive = "cifar-10-python.tar.gz"
    unpack_cifar(tmp_path, archive, files_of("cifar10", archive))
    labels = content("cifar10")[-1][1]
    recipe = preparing.RECIPES["cifar10h"]
    files = tuple(file._replace(url=server.url + file.url.rpartition("/")[2]) for file in recipe.files)
    monkeypatch.setitem(preparing.RECIPES, "cifar10h", recipe._replace(files=files))
    for kind, values in (("probs", counts_of(labels) / 50), ("counts", counts_of((labels + 5) % 10))):
        buffer = io.BytesIO()
        np.save(buffer, values)
        server.content[f"cifar10h-{kind}.npy"] = buffer.getvalue()
    refused("the order differs, since .*counts.npy", prepare, "cifar10h", str(tmp_path))
    assert (tmp_path / "cifar10h-probs.npy").is_file() and not (tmp_path / "cifar10h-counts.npy").exists()
    server.content["cifar10h-counts.npy"] = server.content["cifar10h-probs.npy"]
    prepare("cifar10h", str(tmp_path))
    out = capsys.readouterr().out
    assert "CC BY-NC-SA 4.0" in out and "not to be redistributed" in out
    assert cifar10h.load_cifar10h(str(tmp_path)).soft.shape == (3, 10)


def make_archive(path, members):
    """Writes an archive with members (name, content, or None for a link)."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in members:
                info = zipfile.ZipInfo(name)
                info.external_attr = (0o120777 if data is None else 0o100644) << 16
                archive.writestr(info, b"/etc/passwd" if data is None else data)
        return path
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data or b"")
            if data is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(info, io.BytesIO(data or b""))
    return path


GOOD = [("set/a/1.png", b"one"), ("set/b/2.png", b"two")]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_is_unpacked_once_and_removed(server, tmp_path, monkeypatch, kind, capsys):
    data = server.content[f"x.{kind}"] = make_archive(tmp_path / f"x.{kind}", GOOD).read_bytes()
    recipe = Recipe((File(f"{server.url}x.{kind}", md5(data), "set", unpack=True),))
    monkeypatch.setitem(preparing.RECIPES, "set", recipe)
    for _ in range(2):
        prepare("set", str(tmp_path / "data"))
    assert names(tmp_path / "data") == ["set"] and (tmp_path / "data/set/b/2.png").read_bytes() == b"two"
    assert len(server.asked) == 1 and "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize(
    "name, data",
    [
        ("set/../../out.txt", b""),
        ("../out.txt", b""),
        ("/out.txt", b""),
        ("..\\out.txt", b""),
        ("C:\\out.txt", b""),
        ("set/link", None),
    ],
)
def test_an_archive_with_paths_out_of_its_folder_writes_nothing(tmp_path, kind, name, data):
    (tmp_path / "data").mkdir()
    archive = make_archive(tmp_path / "data" / f"x.{kind}", [*GOOD, (name, data)])
    refused(
        "which is a link or leads out of its folder: nothing was unpacked", unpack, archive, tmp_path / "data" / "set"
    )
    assert names(tmp_path) == ["data"] and names(tmp_path / "data") == [f"x.{kind}"]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_damaged_and_other_archives(tmp_path, kind):
    archive = make_archive(tmp_path / f"x.{kind}", GOOD)
    refused("has no folder other", unpack, archive, tmp_path / "other")
    archive.write_bytes(archive.read_bytes()[:50])
    refused("is damaged .*: remove it and run this again", unpack, archive, tmp_path / "set")
    assert names(tmp_path) == [f"x.{kind}"]


def test_tensorflow_is_asked_for_before_anything_is_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr(preparing.importlib.util, "find_spec", lambda name: None)
    line = r"needs TensorFlow to write 'svhn_cropped' \(reading it does not\): pip install 'kdjax\[tf\]'"
    for name in ("svhn", "tfds:svhn_cropped"):
        refused(line, prepare, name, str(tmp_path))
    refused("could not prepare 'no_such_set' in .*not found", prepare, "tfds:no_such_set", str(tmp_path))


def test_a_set_that_tensorflow_datasets_has_prepared_is_not_changed(tmp_path, monkeypatch, capsys):
    from tests.data import test_tfds_source

    test_tfds_source.prepare(tmp_path, "fashion_mnist")
    monkeypatch.setattr("tensorflow_datasets.builder", lambda *args, **kwargs: Prepared())
    prepare("tfds:fashion_mnist", str(tmp_path))
    assert "nothing to do" in capsys.readouterr().out


class Prepared:
    data_path = "there"

    def is_prepared(self):
        return True


@pytest.mark.parametrize(
    "arguments, code, line",
    [
        (["cifar100"], 0, "is there and complete"),
        ([], 2, "name a data set, as in python -m kdjax.prepare_data cifar100. There are: cifar10, cifar100, "),
        (["cifar100", "cifar10"], 2, "unexpected argument 'cifar10'"),
        (["imagenet"], 2, "put there a folder imagenet"),
        (["--help"], 0, "usage: python -m kdjax.prepare_data [NAME] [flags]"),
    ],
)
def test_the_door(cifar100, tmp_path, arguments, code, line, capsys):
    (tmp_path / ARCHIVE).write_bytes(cifar100)
    cli.FLAGS.unparse_flags()
    try:
        cli.run(prepare_data.main, ["prepare_data.py", *arguments, f"--data_dir={tmp_path}"], takes="[NAME]")
        left = 0
    except SystemExit as leave:
        left = leave.code
    finally:
        cli.FLAGS.unparse_flags()
    out, err = capsys.readouterr()
    assert left == code and line in out + err and len(err.splitlines()) == (code == 2)
    assert "pooch" in sys.modules or code

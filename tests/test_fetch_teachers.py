"""launch/fetch_teachers.sh, with files from a folder, from the first server's archive and from the second server."""

import functools
import http.server
import os
import pathlib
import shutil
import subprocess
import tarfile
import threading

import numpy as np
import pytest

from kdjax import models
from kdjax.interop.torch_weights import to_state_dict
from kdjax.store import Store
from tests.data.test_cifar import files_of, pack

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module", autouse=True)
def an_environment():
    if not list((ROOT / os.environ.get("KDJAX_VENV", ".venv")).glob("kdjax-*")):
        pytest.skip("no environment: launch/setup.sh has not been run here")


def write_teacher(path, model):
    """Writes a file with the name that the servers use. kdjax recognises the format by the content."""
    module = models.create_model(model, 100)
    state = to_state_dict(module, models.init_variables(module, (1, 32, 32, 3), 0))
    path.parent.mkdir(parents=True)
    with open(path, "wb") as file:
        np.savez(file, **state)


@pytest.fixture
def data_dir(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    pack(folder, "cifar-100-python.tar.gz", files_of("cifar100", "cifar-100-python.tar.gz"))
    return folder


@pytest.fixture
def server(tmp_path):
    """Serves what the two servers have: an archive with one teacher, and a file of another teacher."""
    served = tmp_path / "served"
    write_teacher(served / "repo/vgg13_vanilla/ckpt_epoch_240.pth", "vgg13")
    write_teacher(tmp_path / "cifar_teachers/wrn_40_2_vanilla/ckpt_epoch_240.pth", "wrn_40_2")
    with tarfile.open(served / "cifar_teachers.tar", "w") as archive:
        archive.add(tmp_path / "cifar_teachers", "cifar_teachers")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=served)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}"
        httpd.shutdown()
        thread.join()


def fetch(tmp_path, data_dir, *arguments, server="http://127.0.0.1:9"):
    env = {**os.environ, "MDISTILLER_URL": f"{server}/cifar_teachers.tar", "REPDISTILLER_URL": f"{server}/repo"}
    line = ["launch/fetch_teachers.sh", f"--store={tmp_path}/runs", f"--data_dir={data_dir}", *arguments]
    return subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240)


# The archive of the first server has wrn_40_2; it lacks vgg13, which then comes from the second server.
@pytest.mark.parametrize("names", [("vgg13",), pytest.param(("wrn_40_2", "vgg13"), marks=pytest.mark.slow)])
def test_from_the_servers_and_then_again_without_them(names, tmp_path, data_dir, server):
    done = fetch(tmp_path, data_dir, *names, server=server)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if "published |" in line][1:]
    for name, row in zip(names, rows, strict=True):
        published = {"wrn_40_2": "75.61", "vgg13": "74.64"}[name]
        accuracy = Store(tmp_path / "runs").find(f"cifar100/{name}-published").result["last"]["test"]["accuracy"]
        assert row == f"| {name} | cifar100/{name}-published | {published} | {100 * accuracy:.2f} |"
    assert len((data_dir / "teachers/sha256sums.txt").read_text().splitlines()) == len(names)
    again = fetch(tmp_path, data_dir, *names)  # the servers are gone, the files are kept
    assert again.returncode == 0 and again.stdout == done.stdout, again.stderr


def test_from_a_folder_and_a_file_that_has_changed(tmp_path, data_dir):
    write_teacher(tmp_path / "here/vgg13_vanilla/ckpt_epoch_240.pth", "vgg13")
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    done = fetch(tmp_path, data_dir, f"--from={tmp_path}/here", "vgg13")
    assert done.returncode == 0 and "| vgg13 | cifar100/vgg13-published | 74.64 | " in done.stdout, done.stderr
    with open(tmp_path / "there/vgg13_vanilla/ckpt_epoch_240.pth", "ab") as file:
        file.write(b"x")
    done = fetch(tmp_path, data_dir, f"--from={tmp_path}/there", "vgg13")
    assert done.returncode == 2 and "is not the file of" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["resnet57"], "unknown teacher 'resnet57'. There are: resnet56,"),
        (["--form=x"], "unknown flag --form=x"),
        (["--from=nowhere", "vgg13"], "nowhere has neither vgg13_vanilla/ckpt_epoch_240.pth nor vgg13.pth"),
        (["vgg13"], "vgg13 could not be downloaded from"),
    ],
)
def test_a_mistake_is_said_in_one_line(tmp_path, data_dir, arguments, words):
    done = fetch(tmp_path, data_dir, *arguments)
    assert done.returncode != 0 and words in done.stderr.splitlines()[-1], done.stderr
    assert not (tmp_path / "runs").exists()

"""launch/setup.sh: which Python it chooses. The Pythons here are scripts that can be asked and cannot install."""

import os
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[1]
CANNOT_RUN = "#!/bin/sh\necho 'command not found' >&2\nexit 127\n"
RUNS = '#!/bin/sh\ncase "$1" in --version) echo "Python {0}" ;; -c) exit 0 ;; *) exit 1 ;; esac\n'


@pytest.fixture
def setup_with(tmp_path):
    """Runs setup.sh with the named Pythons on the PATH, and no other."""

    def run(pythons, **variables):
        folder = tmp_path / "bin"
        folder.mkdir()
        shell = "bash", "dirname", "cat", "cksum", "cut", "rm", "sh"
        for name in shell:
            folder.joinpath(name).symlink_to(
                next(path for path in (f"/bin/{name}", f"/usr/bin/{name}") if os.path.exists(path))
            )
        for name, text in pythons.items():
            folder.joinpath(name).write_text(text)
            folder.joinpath(name).chmod(0o755)
        env = {"PATH": str(folder), "KDJAX_VENV": str(tmp_path / "venv"), **variables}
        done = subprocess.run([ROOT / "launch/setup.sh"], env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 2 and not (tmp_path / "venv").exists()  # no script here can make an environment
        return done.stderr

    return run


def test_the_newest_python_that_runs_is_chosen(setup_with):
    """pyenv puts names on the PATH that fail when they are called."""
    found = {"python3": "3.11.7", "python3.11": "3.11.7", "python3.12": "3.12.1"}
    pythons = {name: RUNS.format(version) for name, version in found.items()} | {"python3.13": CANNOT_RUN}
    assert "creating" in (words := setup_with(pythons)) and "with Python 3.12.1" in words


def test_a_later_python_than_those_tested_is_the_last_choice(setup_with):
    assert "with Python 3.11.2" in setup_with({"python3.14": RUNS.format("3.14.0"), "python3": RUNS.format("3.11.2")})


def test_the_python_that_is_named_is_the_only_choice(setup_with):
    pythons = {"python3.13": RUNS.format("3.13.0"), "python3.10": CANNOT_RUN}
    (line,) = setup_with(pythons, PYTHON="python3.10").splitlines()
    assert "PYTHON=python3.10 does not run" in line


def test_without_a_python_one_line_says_what_to_install(setup_with):
    (line,) = setup_with({"python3": CANNOT_RUN}).splitlines()
    assert "no Python 3.11 or later" in line and "apt install python3-venv" in line

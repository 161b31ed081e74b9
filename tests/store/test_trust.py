"""A store is data: no command runs the code that its files name, unless the user names it too."""

import shutil
import sys

import pytest
from tiny_runs import edit, run, student_config, teacher_config, write_data

from kdjax import own_code
from kdjax.config import defaults
from kdjax.data.sources import DATASETS
from kdjax.errors import UserError
from kdjax.inspection.predict import score_run
from kdjax.store import Store

EVIL = """
import pathlib
pathlib.Path(__file__).with_name("ran").touch()

def attribute(*args, **kwargs):
    raise RuntimeError
"""
# Where a manifest may name code that a command would import.
PLACES = {
    "model": lambda config: config["model"].update(name="evil:attribute"),
    "data": lambda config: config["data"].update(name="evil:attribute", args={}),
    "protocol": lambda config: config["data"].update(protocols={"evil:attribute": {}}),
    "loss": lambda config: config.update(losses={"evil:attribute": {"weight": 1.0}}),
    "schedule": lambda config: config["schedule"].update(name="evil:attribute"),
}
DOORS = {
    "evaluate": ("kdjax.evaluate", "--run=teacher"),
    "analyze": ("kdjax.analyze", "--runs=teacher", "--what=calibration"),
    "export": ("kdjax.export", "--run=teacher"),
    "report": ("kdjax.report", "--out=report"),
    "runs": ("kdjax.runs",),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trust")
    write_data(folder / "data.npz")
    run(teacher_config(folder / "data.npz"), Store(folder / "runs"), "teacher")
    return folder


@pytest.fixture
def evil(trained, tmp_path):
    """A folder with a copy of the store, and a module that leaves a file when it is imported."""
    shutil.copytree(trained / "runs", tmp_path / "runs")
    shutil.copy(trained / "data.npz", tmp_path)
    (tmp_path / "evil.py").write_text(EVIL)
    yield tmp_path
    sys.modules.pop("evil", None)


def plant(folder, place):
    edit(folder / "runs" / "teacher" / "manifest.json", lambda manifest: PLACES[place](manifest["config"]))


@pytest.mark.parametrize("name", DOORS)
@pytest.mark.parametrize("place", ["model", "data", "protocol"])
def test_no_command_imports_what_a_manifest_names(place, name, evil, door):
    plant(evil, place)
    done = door(*DOORS[name], cwd=evil)
    assert not (evil / "ran").exists() and "evil" not in sys.modules
    if name in ("evaluate", "analyze") or (name, place) == ("export", "model"):
        assert done.returncode == 2 and "'evil:attribute'" in done.stderr and "--trust=evil" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    else:  # a report shows what is stored; weights can be exported without the data
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("place", ["loss", "schedule"])
def test_code_that_a_command_does_not_need_is_neither_imported_nor_in_the_way(place, evil, door):
    plant(evil, place)
    assert door(*DOORS["evaluate"], cwd=evil).returncode == 0
    assert door(*DOORS["report"], cwd=evil).returncode == 0
    assert not (evil / "ran").exists()


@pytest.mark.parametrize("use", ["teacher", "init_from"])
def test_a_student_imports_no_code_of_its_teacher(use, evil, monkeypatch):
    monkeypatch.syspath_prepend(evil)
    plant(evil, "model")
    config = student_config(evil / "data.npz") if use == "teacher" else teacher_config(evil / "data.npz")
    config.init_from = "teacher" if use == "init_from" else ""
    with pytest.raises(UserError, match=r"run 'teacher' names code, config.model.name = 'evil:attribute'"):
        run(config, Store(evil / "runs"), "student")
    assert not (evil / "ran").exists() and not (evil / "runs" / "student" / "manifest.json").exists()


def test_code_is_imported_if_its_package_is_trusted(evil, door):
    plant(evil, "data")
    done = door(*DOORS["evaluate"], "--trust=other,evil", cwd=evil)
    assert (evil / "ran").exists() and "could not be loaded" in done.stderr


def test_code_is_imported_if_a_config_of_the_users_names_it(evil, monkeypatch):
    monkeypatch.syspath_prepend(evil)
    monkeypatch.setattr(own_code, "_NAMED", set())
    plant(evil, "data")
    own_code.note_named({"any": [{"where": "evil:attribute"}]})
    with pytest.raises(UserError, match="could not be loaded"):
        score_run(Store(evil / "runs"), "teacher")


@pytest.mark.parametrize(
    "trusted, name, allowed",
    [
        ("a", "a:f", True),
        ("a", "a.b.c:f", True),
        ("a.b", "a.b:f", True),
        ("a.b", "a:f", False),
        ("a", "ab:f", False),
        ("a:f", "a:f", True),
        ("a:f", "a:g", False),
        ("f", "a:f", False),
        ("", "a:f", False),
    ],
)
def test_trust_is_of_packages_modules_and_objects(trusted, name, allowed):
    assert own_code.Trust(frozenset([trusted])).allows(name) == allowed


def test_every_place_of_a_config_that_may_name_code_is_known():
    config = defaults().to_dict()
    for change in PLACES.values():
        change(config)
    config["losses"]["kd"] = {"weight": {"schedule": "evil:attribute"}, "loss": "evil:other"}
    fields = own_code.names_in(config)
    assert set(fields.values()) == {"evil:attribute", "evil:other"} and len(fields) == 7
    assert own_code.names_in(defaults().to_dict()) == {}


@pytest.mark.parametrize("name", ["folder:pics", "list:a.txt", "tfds:mnist"])
def test_the_short_names_of_data_sets_are_no_code(name):
    assert own_code.names_in_data({"name": name}) == {}
    assert set(own_code.SHORT) <= set(DATASETS)

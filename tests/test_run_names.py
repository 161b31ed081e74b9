"""The default names of runs: no two settings share one, and an unchanged config keeps its own."""

import itertools

import pytest

from kdjax.config_files import apply_overrides, load_config, read, split_overrides
from kdjax.run_names import LONGEST, default_run_name
from kdjax.store.runs import PART

KD = "configs/kd_student.py"
PLAIN = "digits/mlp-cross_entropy+kd-mlp-mse-s0-s0"


@pytest.fixture(autouse=True)
def in_the_project(root, monkeypatch):
    monkeypatch.chdir(root)


def named(*overrides: str, file: str = KD) -> str:
    config = read(file)
    apply_overrides(config, split_overrides([f"--config.{override}" for override in overrides])[1])
    return default_run_name(config)


@pytest.mark.parametrize(
    "overrides, name",
    [
        (("losses.kd.temperature=2",), "digits/mlp-LOSSES-mlp-mse-s0-kd.temperature=2-s0"),
        (("losses.kd.temperature=2.5", "epochs=3"), "digits/mlp-LOSSES-mlp-mse-s0-epochs=3-kd.temperature=2.5-s0"),
        (("optimizer.weight_decay=1e-5", "seed=3"), "digits/mlp-LOSSES-mlp-mse-s0-optimizer.weight_decay=1e-05-s3"),
        (("data.split_seed=1", "epochs=3"), "digits/mlp-LOSSES-mlp-mse-s0-epochs=3-split1-s0"),
        (("name=mine",), "digits/mlp-mine-mlp-mse-s0-s0"),
        (("schedule.milestones=(2, 3)",), "digits/mlp-LOSSES-mlp-mse-s0-schedule.milestones=2+3-s0"),
        (("data.protocols.subset.per_class=9",), "digits+subset-9/mlp-LOSSES-mlp-mse-s0-subset.per_class=9-s0"),
        (("teachers.a.run=digits/mlp-ce-s0",), "digits/mlp-LOSSES-mlp-ce-s0-s0"),
        (("teachers.b.run=digits/mlp-ce-s0",), "digits/mlp-LOSSES-mlp-mse-s0-mlp-ce-s0-teachers=a+b-s0"),
        (("data.view=crop",), "digits/mlp-LOSSES-mlp-mse-s0-crop-s0"),
        (("model.name=resnet8",), "digits/resnet8-LOSSES-mlp-mse-s0-s0"),
        (("model.name=resnet8", "model.args.x=1"), "digits/resnet8-LOSSES-mlp-mse-s0-model.args.x=1-s0"),
        (("checkpoint.every_epochs=1", "log_every=5", "seed=0"), PLAIN),
        (("epochs=3", "epochs=40"), PLAIN),
        ((), PLAIN),
    ],
)
def test_a_name_says_what_was_changed(overrides, name):
    assert named(*overrides) == name.replace("LOSSES", "cross_entropy+kd")


def test_two_settings_have_two_names_that_a_folder_can_have():
    """Values that look alike, also as text and number, each alone and with another field."""
    values = {
        "losses.kd.temperature": ["2", "2.5", "1e-5", "1e5", "0.1", "0.10000000000000002"],
        "model.args.x": ["1", "'1'", "True", "'true'", "None", "'none'", "(1,)", "(1, 2)", "'1+2'", "[[1], 2]", "-1"],
        "data.view": ["crop", "crop+cutout:16", "crop+cutout:1"],
        "teachers.a.run": ["digits/a", "a/a", "b/a", "digits/mlp-ce-s0"],
        "teachers.a.logits": ["a.npy", "b/a.npy", "a.npz"],
        "init_from": ["a/b", "a_b", "a-b"],
        "model.name": ["resnet8", "resnet20"],
        "losses.epochs.loss": ["kd"],  # a label that is called as a field is
        "epochs": ["3", "12"],
    }
    alone = [(f"{field}={value}",) for field, own in values.items() for value in own]
    pairs = [(a, b) for (a,), (b,) in itertools.combinations(alone, 2) if a.split("=")[0] != b.split("=")[0]]
    pairs = [pair for pair in pairs if not pair[1].startswith("model.name=")]  # it drops the arguments before it
    names = [named(*overrides) for overrides in [(), *alone, *pairs[::7]]]
    assert len(set(names)) == len(names)
    assert all(PART.fullmatch(part) for name in names for part in name.split("/"))


def test_a_long_change_is_cut_and_still_its_own():
    long = [f"data.args.field_number_{i}='{'x' * 30}{i}'" for i in range(9)]
    one, other = named(*long), named(*long[:-1], "data.args.field_number_8=9")
    assert one != other and max(map(len, (one, other))) < LONGEST + 60


def test_python_and_the_command_line_give_the_same_name():
    assert default_run_name(load_config(KD, **{"losses.kd.temperature": 2})) == named("losses.kd.temperature=2")


@pytest.mark.parametrize("file, change", [(KD, "losses.kd.weight=3"), ("configs/ce_teacher.py", "epochs=3")])
def test_a_folder_has_one_name_by_any_path(file, change):
    names = {named(f"data.name=folder:{path}", change, file=file) for path in ("pics", "./pics", "/abs/pics", "pics/")}
    assert len(names) == 1 and next(iter(names)).startswith("pics/mlp-")

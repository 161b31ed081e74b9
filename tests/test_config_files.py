"""Config files from Python and overrides of their fields, by the same rules as on the command line."""

import pytest

from kdjax.config_files import Override, apply_override, load_config, read, split_overrides
from kdjax.errors import UserError

KD = "configs/kd_student.py:smoke"


@pytest.fixture(autouse=True)
def in_the_project(root, monkeypatch):
    monkeypatch.chdir(root)


def test_a_file_with_its_argument_and_overrides_of_any_depth():
    config = load_config(KD, **{"losses.kd.temperature": 2, "epochs": 3, "teachers.a.run": "x/y"})
    assert (config.losses.kd.temperature, config.epochs, config.teachers.a.run) == (2.0, 3, "x/y")
    assert isinstance(config.losses.kd.temperature, float)  # a whole number for a float would compile another step
    assert config.data.name == "gaussian" and load_config("configs/kd_student.py").data.name == "digits"


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"epoch": 3}, "config has no field 'epoch'. Did you mean 'epochs'?"),
        ({"epochs": 2.5}, "config.epochs must be an integer"),
        ({"epochs": 0}, "config.epochs must be at least 1"),
        ({"diagnostics": 1}, "config.diagnostics must be true or false"),
        ({"data.view": 3}, "config.data.view must be a str"),
        ({"data": 3}, "config.data must be a mapping; set one of its fields"),
        (
            {"optimizer.lerning_rate": 1.0},
            "config.optimizer has no field 'lerning_rate'. Did you mean 'learning_rate'?",
        ),
        ({"epochs.x": 1}, "config.epochs is not a mapping"),
        ({"schedule.milestones": ("a",)}, "config.schedule.milestones must be a tuple of numbers of at least 0"),
        ({"teacher_classes": (0, 1.5)}, "config.teacher_classes must be a tuple of integers of at least 0"),
        ({"optimizer.learning_rate": float("inf")}, "config.optimizer.learning_rate must be above 0, not inf"),
        ({"optimizer.b1": 1.0}, r"config.optimizer.b1 must be in .0, 1., not 1.0"),
        ({"teachers.a.rn": "x"}, "config.teachers.a has no field 'rn'. Did you mean 'run'?"),
        ({"data.protocols.subset": 3}, "config.data.protocols.subset must be a mapping"),
    ],
)
def test_a_wrong_field_is_one_line(fields, words):
    with pytest.raises(UserError, match=words.replace("?", r"\?")):
        load_config(KD, **fields)


def test_a_missing_or_failing_file_is_one_line(tmp_path):
    with pytest.raises(UserError, match="Did you mean 'kd_student.py'"):
        load_config("configs/kd_studnt.py")
    (tmp_path / "mine.py").write_text("def get_config():\n    return {}[1]\n")
    with pytest.raises(UserError, match="mine.py failed: KeyError: 1"):
        load_config(str(tmp_path / "mine.py"))


@pytest.mark.parametrize(
    "text, path, value",
    [
        ("data.protocols.subset.per_class=100", "data.protocols.subset.per_class", 100),
        ("losses.kd.temperature=2", "losses.kd.temperature", 2.0),
        ("losses.again.loss=kd", "losses.again.loss", "kd"),
        ("teachers.a.temperature=fitted", "teachers.a.temperature", "fitted"),
        ("model.args.hidden=(3, 4)", "model.args.hidden", (3, 4)),
        ("model.features=['a']", "model.features", ("a",)),
        ("diagnostics=True", "diagnostics", True),
        ("data.view=1", "data.view", "1"),
    ],
)
def test_a_text_becomes_the_type_of_its_field(text, path, value):
    rest, (override,) = split_overrides(["door", f"--config.{text}", "--store=x"])
    config = read(KD)
    apply_override(config, override)
    assert rest == ["door", "--store=x"]
    found = config
    for part in path.split("."):
        found = found[part]
    assert found == value and type(found) is type(value)


def test_the_forms_of_an_override():
    line = ["door", "--config.a", "1", "--config.b", "--noconfig.c", "-config.d=2", "rest"]
    rest, found = split_overrides(line)
    assert rest == ["door", "rest"]
    assert [(one.path, one.text) for one in found] == [("a", "1"), ("b", None), ("c", "false"), ("d", "2")]


def test_another_network_does_not_inherit_the_arguments_of_the_former():
    config = read("configs/ce_teacher.py")
    apply_override(config, Override("", "model.name", "resnet8"))
    assert not config.model.args and "(hidden) are dropped" in config.notes[-1]
    apply_override(config, Override("", "model.args.width", "2"))
    assert config.model.args.to_dict() == {"width": 2}

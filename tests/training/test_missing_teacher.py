"""A missing teacher is answered with a command that makes just this run, or with what is not known of it."""

import shlex

import pytest

from kdjax.config_files import load_config, read
from kdjax.run_names import default_run_name
from kdjax.training.missing_teacher import how_to_make


def answer(root, monkeypatch, file, run):
    monkeypatch.chdir(root)
    fields = load_config(file).teachers.a.to_dict()
    return how_to_make("a", {**fields, "run": run}, "elsewhere")


@pytest.mark.parametrize(
    "student, run, config, seed",
    [
        ("kd_student.py", "digits/mlp-mse-s0", "configs/mse_teacher.py", 0),
        ("kd_student.py", "digits/mlp-mse-s3", "configs/mse_teacher.py", 3),
        ("kd_student.py:smoke", "gaussian/mlp-ce-smoke-s2", "configs/ce_teacher.py:smoke", 2),
        ("kd_student.py", "digits/mlp-tolerant-s0", "configs/tolerant_teacher.py", 0),
        ("kd_student.py", "digits/mlp-smoothed-s1", "configs/teacher.py:smoothed", 1),
        (
            "student.py:kd,resnet32x4,resnet8x4",
            "cifar100/resnet56-mse-s0",
            "configs/mse_teacher.py:cifar100,resnet56,resnet8x4",
            0,
        ),
    ],
)
def test_the_command_makes_a_run_of_this_name(root, monkeypatch, student, run, config, seed):
    said = answer(root, monkeypatch, f"configs/{student}", run)
    assert said.startswith("Make it with: python -m kdjax.train_teacher --config=")
    flags = dict(part.split("=", 1) for part in shlex.split(said) if part.startswith("--"))
    assert flags == {"--config": config, "--run": run, "--store": "elsewhere"} | (
        {"--config.seed": str(seed)} if "--config.seed" in flags else {}
    )
    made = read(flags["--config"])
    made.seed = int(flags.get("--config.seed", made.seed))
    assert made.seed == seed and default_run_name(made) == run


@pytest.mark.parametrize("run", ["digits/mine", "digits/mlp-unheard_of-s0", "digits+subset-10/mlp-mse-s0", "a/b/c-s1"])
def test_a_run_of_no_known_config_is_said_to_be_one(root, monkeypatch, run):
    said = answer(root, monkeypatch, "configs/kd_student.py", run)
    assert "Its config file is not known (that of 'digits/mlp-mse-s0' is: python" in said
    assert f"--run={run} --store=elsewhere" in said and "config.teachers.a.run" in said and "..." not in said


def test_a_config_without_a_command_names_none():
    assert how_to_make("b", {"run": "x"}, "runs").startswith("Its config file is not known: train it with python -m")


def test_the_command_has_the_fields_that_the_name_says_were_changed(root, monkeypatch):
    run = "digits/mlp-mse-epochs=2-softmax_mse.weight=0.5-s1"
    said = answer(root, monkeypatch, "configs/kd_student.py", run)
    assert (
        "--config=configs/mse_teacher.py --config.seed=1 --config.epochs=2 --config.losses.softmax_mse.weight" in said
    )
    fields = dict(part.removeprefix("--config.").split("=") for part in said.split() if part.startswith("--config."))
    typed = {"seed": int(fields["seed"]), "epochs": int(fields["epochs"])}
    typed["losses.softmax_mse.weight"] = float(fields["losses.softmax_mse.weight"])
    assert default_run_name(load_config("configs/mse_teacher.py", **typed)) == run

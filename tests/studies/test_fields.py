"""Fields of a study: all that is wrong with them is said at once, and what is right has its type."""

import dataclasses

import pytest
from ml_collections import ConfigDict

from configs import tolerant_generations
from configs.studies import (
    attention_fidelity,
    gaussian_posterior,
    human_posterior,
    noise,
    quickstart,
    renyi,
    semi_supervised,
    teacher_loss_table,
    which_teacher,
)
from kdjax.errors import UserError
from kdjax.studies.fields import RunConfig, read_fields
from kdjax.studies.kinds import KINDS, read_study

CONFIGS = (attention_fidelity, gaussian_posterior, human_posterior, noise, quickstart, renyi, tolerant_generations)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    depth: int
    names: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fields:
    title: str
    rates: tuple[float, ...]
    pairs: tuple[tuple[str, int], ...] = ()
    inner: dict[str, Inner] = dataclasses.field(default_factory=dict)
    config: RunConfig = dataclasses.field(default_factory=RunConfig)
    terms: dict = dataclasses.field(default_factory=dict)
    flag: bool = False
    told: str = dataclasses.field(default="", metadata={"name": "report"})


def test_values_are_converted_and_defaults_filled_in():
    config = ConfigDict({"title": "T", "rates": [1, 0.5], "pairs": (["a", 1],), "inner": {"x": {"depth": 2}}})
    config.config, config.terms, config.report = {"seed": 1}, {"kd": {"weight": 1.0}}, "now"
    found = read_fields(Fields, config)
    assert found.rates == (1, 0.5) and found.pairs == (("a", 1),) and found.inner == {"x": Inner(depth=2)}
    assert isinstance(found.config, ConfigDict) and found.config.seed == 1
    assert type(found.terms["kd"]) is dict and found.told == "now" and found.flag is False


def test_everything_that_is_wrong_is_said_in_one_line():
    config = {"titel": "T", "rates": (0.1, "x"), "inner": {"x": {"names": ("a", 2), "dept": 1}}, "config": 3}
    with pytest.raises(UserError) as caught:
        read_fields(Fields, config)
    said = str(caught.value)
    assert "\n" not in said
    for words in (
        "config has no field 'titel'. Did you mean 'title'?",
        "config.title is missing.",
        "config.rates[1] must be a number, not 'x'.",
        "config.inner.x has no field 'dept'. Did you mean 'depth'?",
        "config.inner.x.depth is missing.",
        "config.inner.x.names[1] must be a string, not 2.",
        "config.config must be a mapping, not 3.",
    ):
        assert words in said


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("rates", 0.1, "config.rates must be a tuple, not 0.1"),
        ("rates", (True,), r"config.rates\[0\] must be a number, not True"),
        ("pairs", (("a",),), r"config.pairs\[0\] must have 2 entries, not \('a',\)"),
        ("inner", {"x": 1}, "config.inner.x must be a mapping, not 1"),
        ("flag", 1, "config.flag must be True or False, not 1"),
        ("terms", "kd", "config.terms must be a mapping, not 'kd'"),
        ("told", "x", "config has no field 'told'"),
    ],
)
def test_a_wrong_type_is_refused(field, value, words):
    with pytest.raises(UserError, match=words):
        read_fields(Fields, {"title": "T", "rates": (0.1,), field: value})


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("argument", [None, "smoke"])
def test_every_config_of_a_study_can_be_read_and_no_kind_takes_another_field(config, argument):
    study = config.get_config(argument)
    assert type(read_study(study)).__module__.startswith("kdjax.studies.")
    study.titel, study.sed = "T", 1
    required = [name for name in study if name in ("student", "students", "chains")][0]
    del study[required]
    with pytest.raises(UserError) as caught:
        read_study(study)
    for words in ("no field 'titel'. Did you mean 'title'?", "no field 'sed'.", f"config.{required} is missing."):
        assert words in str(caught.value)


def test_every_kind_has_a_config():
    assert {config.get_config("smoke").get("kind", "cross") for config in (*CONFIGS, which_teacher)} == set(KINDS)
    for config in (semi_supervised, teacher_loss_table):
        assert read_study(config.get_config("smoke")).title

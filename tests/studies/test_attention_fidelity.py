"""The study of attention and fidelity: its runs, its measures, and its tables from made-up numbers."""

import numpy as np
import pytest

from configs.studies import attention_fidelity as config
from kdjax.errors import UserError
from kdjax.reporting.statistics import t_interval
from kdjax.studies import attention_fidelity as study
from kdjax.studies.kinds import read_study
from kdjax.studies.runner import Job
from kdjax.training.plan import resolve


def make_jobs(chosen) -> list[Job]:
    return [job for stage in study.make_stages(read_study(chosen)) for job in stage]


@pytest.mark.parametrize("argument", [None, "smoke", "cifar100"])
def test_every_run_passes_the_schema_and_has_its_teachers_before_it(argument):
    chosen = config.get_config(argument)
    jobs = make_jobs(chosen)
    made: dict[str, object] = {}
    for job in jobs:
        resolve(job.config)
        teachers = [made[teacher.run] for teacher in job.config.teachers.values()]
        assert {teacher.key.team for teacher in teachers} == set(study.members(job.key.team) if job.key.view else ())
        assert all(teacher.key.seed == job.key.seed for teacher in teachers)
        assert all(teacher.config.data.split_seed == job.config.data.split_seed for teacher in teachers)
        assert "kd" in job.config.losses or not job.config.teachers
        made[job.name] = job
    assert len(made) == len(jobs)
    students = [job for job in jobs if job.key.view]
    assert len(students) == len(chosen.seeds) * 2 * (1 + len(chosen.teams))
    assert all(job.config.name.startswith("to-" if job.key.team else "alone-") for job in students)


def test_a_teams_views_are_counted():
    assert study.members("wws") == ("w1", "w2", "s1") and study.members("") == ()


def test_what_no_config_knows_is_refused():
    with pytest.raises(UserError, match="unknown word 'smok'.*Did you mean 'smoke'"):
        config.get_config("smok")
    chosen = config.get_config("smoke")
    chosen.teams = ("wx",)
    with pytest.raises(UserError, match="config.teams: unknown name 'x'. There are: s, w"):
        make_jobs(chosen)


class Constant:
    """A run with given answers."""

    def __init__(self, answers, view="crop"):
        self.logits, self.view = np.eye(3)[list(answers)], view
        self.loaded = self
        self.config = self
        self.seed = 0


def test_answers_are_compared_with_the_teachers_mean(monkeypatch):
    monkeypatch.setattr(study, "_logits", lambda run, view, seed: run.logits[::-1] if view != "none" else run.logits)
    student = Constant([0, 1, 2, 2])
    alone = study._fidelity(student, [])
    one = study._fidelity(student, [Constant([0, 1, 2, 1])])
    two = study._fidelity(student, [Constant([0, 1, 2, 1]), Constant([0, 2, 2, 1])])
    assert alone == {} and "teachers_agreement" not in one
    assert one["agreement"] == one["agreement_in_view"] == 0.75
    assert two["teachers_agreement"] == 0.75 and two["agreement"] == 0.75  # the tie falls on the first class
    itself = study._fidelity(student, [student])
    assert itself["information"] == pytest.approx(-np.sum([w * np.log(w) for w in (0.25, 0.25, 0.5)]))


def made_up(seeds=(0, 1, 2)) -> list[study.AttentionStudent]:
    """Students on strong views gain 2 points plus 0.1 per seed; strong teachers agree less by 10 points."""
    draw, students = np.random.default_rng(0), []
    for seed in seeds:
        for team in ("", "w", "s", "ww", "ss"):
            for view in "ws":
                accuracy = 0.9 + (0.02 + 0.001 * seed) * (view == "s") + 0.005 * len(team)
                scores = {"accuracy": accuracy, "best": accuracy, "validation": accuracy, "gap": 0.1}
                if team:
                    scores |= {"agreement": 1 - accuracy, "information": draw.normal()}
                if len(team) > 1:
                    scores |= {"teachers_agreement": 0.9 - 0.1 * (team == "ss")}
                students.append(study.AttentionStudent(team, view, seed, scores))
    return students


def cells(table: str, *begins: str) -> list[str]:
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return next(line for line in lines if tuple(line[: len(begins)]) == begins)


def test_the_contrasts_are_paired_and_their_intervals_students():
    table = study._contrasts_table(made_up())
    teachers, student, both, claim = cells(table, "accuracy, last")[1:]
    _, low, high, _ = t_interval([2.0, 2.1, 2.2])
    assert student == both == f"+2.10 [{low:+.2f}, {high:+.2f}]" and claim == "+"
    assert teachers == "-"  # they change nothing
    assert cells(table, "teachers' agreement")[1].startswith("-10.00 (cannot tell: all 3")
    assert cells(table, "IoU")[1:] == ["-", "-", "-", ""]


def test_a_measure_that_falls_as_accuracy_rises_has_rank_correlation_minus_one():
    table = study._correlations_table(made_up())
    assert cells(table, "agreement")[1:3] == ["-1.00", "-1.00 (cannot tell: all 3 differences are equal)"]
    assert cells(table, "over-fitting gap")[1:3] == ["-", "-"]  # it does not vary
    assert cells(table, "teachers' agreement")[1] != "-1.00"


def test_the_report_shows_every_setting_and_what_it_gains():
    chosen = read_study(config.get_config("smoke"))
    text = chosen.report(made_up())
    gain = cells(text, "ww", "strong")[-2]
    assert gain.startswith("+1.00 (cannot tell: all 3") and "| alone" in text and "nan" not in text
    assert all("student on the weak view" in figure.svg for figure in chosen.figures(made_up()))
    one = chosen.report(made_up(seeds=(0,)))
    assert "nan" not in one

"""Which runs a study makes, and what is kept of them."""

import dataclasses

import pytest

from configs.studies import quickstart, quickstart_full, semi_supervised
from kdjax.errors import UserError
from kdjax.reporting.contrasts import Score
from kdjax.studies.cross import CrossResults, CrossStudy, make_stages
from kdjax.studies.kinds import read_study
from kdjax.studies.runner import Job


def make_jobs(config) -> list[Job]:
    study = read_study(config)
    assert isinstance(study, CrossStudy)
    return [job for stage in make_stages(study) for job in stage]


def test_every_seed_on_every_split_and_teachers_before_students():
    jobs = make_jobs(quickstart_full.get_config())
    assert len(jobs) == 10 * 5 * (2 + 1 + 3 * 2)
    assert {job.key.split for job in jobs} == {5, 6, 7, 8, 9}
    made = set()
    for job in jobs:
        assert all(teacher.run in made for teacher in job.config.teachers.values())
        made.add(job.name)
    assert len(made) == len(jobs)


def test_a_student_learns_from_the_teacher_of_its_seed_and_split():
    for job in make_jobs(quickstart_full.get_config("smoke")):
        for teacher in job.config.teachers.values():
            assert f"split{job.key.split}-s{job.key.seed}" in teacher.run
            assert f"-{job.key.teacher.lower()}-" in teacher.run


@pytest.mark.parametrize(
    "field, value, words",
    [
        ("baseline", "alon", "Did you mean 'alone'"),
        ("seeds", 0, "at least 1"),
        ("splits", (), "config.splits must not be empty"),
        ("contrasts", ((("KD", "MSE"), ("KD", "CEE")),), "no row 'KD from CEE'. Did you mean 'KD from CE'"),
    ],
)
def test_a_wrong_study_is_refused(field, value, words):
    study = quickstart.get_config("smoke")
    study[field] = value
    with pytest.raises(UserError, match=words):
        make_jobs(study)


def test_a_field_that_a_study_lacks():
    study = quickstart.get_config("smoke")
    study.seed = 1
    with pytest.raises(UserError, match="Did you mean 'seeds'"):
        make_jobs(study)


def test_students_of_a_group_learn_from_its_own_teachers():
    jobs = make_jobs(semi_supervised.get_config("smoke"))
    pairs = {(job.key.student, job.key.teacher) for job in jobs if job.key.student and job.key.teacher}
    assert pairs and all(student.split(": ")[0] == teacher.split(": ")[0] for student, teacher in pairs)
    assert ("025%: KD labelled", "025%: MSE") in pairs and ("100%: KD", "100%: CE") in pairs


def made_up() -> CrossResults:
    """Every student is right on a tenth more than the one alone, and on a little more in a later split."""
    rows = []
    for split in (20, 21):
        for student, teacher in (("", "CE"), ("KD", "CE"), ("alone", "")):
            last = {"test": {"accuracy": 0.5 + (0.1 + split / 1e4) * (student == "KD"), "loss": 1.0}}
            rows.append(Score(student, teacher, 0, split, ("cross_entropy",), {"last": last, "seconds": 1.0}))
    return CrossResults(tuple(rows), 0.3)


def test_results_written_and_read_give_the_same_tables(tmp_path):
    study, path = read_study(quickstart.get_config()), tmp_path / "results.json"
    study = dataclasses.replace(study, contrasts=())
    path.write_text(study.dumps(made_up()))
    for found in (study.stored(path, tmp_path / "none"), study.stored(tmp_path / "none", path)):
        assert study.tables(found) == study.tables(made_up()) and found.overlap == 0.3
        assert "| KD " in study.report(found) and [figure.name for figure in study.figures(found)] == ["gains"]
    other = dataclasses.replace(study, splits=(30, 31))
    with pytest.raises(UserError, match="results of another design"):
        other.stored(path, path)
    path.write_text("{}")
    with pytest.raises(UserError, match="is damaged"):
        study.stored(path, path)
    assert study.stored(tmp_path / "none", tmp_path / "none").rows == ()

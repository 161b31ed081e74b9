"""Which runs a study makes."""

import pytest

from configs.studies import quickstart
from kdjax.errors import UserError
from kdjax.studies.cross import make_jobs


def test_every_seed_on_every_split_and_teachers_before_students():
    study = quickstart.get_config()
    jobs = make_jobs(study)
    assert len(jobs) == 10 * 5 * (2 + 1 + 3 * 2)
    assert {job.split for job in jobs} == {5, 6, 7, 8, 9}
    made = set()
    for job in jobs:
        assert all(teacher.run in made for teacher in job.config.teachers.values())
        made.add(job.name)
    assert len(made) == len(jobs)


def test_a_student_learns_from_the_teacher_of_its_seed_and_split():
    for job in make_jobs(quickstart.get_config("smoke")):
        for teacher in job.config.teachers.values():
            assert f"split{job.split}-s{job.seed}" in teacher.run and f"-{job.teacher.lower()}-" in teacher.run


@pytest.mark.parametrize(
    "field, value, words", [("baseline", "alon", "Did you mean 'alone'"), ("seeds", 0, "at least 1")]
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

"""What goes with better students: teachers that look elsewhere than each other, students that answer otherwise?

The experiment of Guo, Why does Knowledge Distillation Work? Rethink its Attention and Fidelity Mechanism (Expert
Systems with Applications 262, 2025): teams of weakly and strongly augmented teachers, students on either view.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from kdjax import analysis
from kdjax.config import default_run_name
from kdjax.errors import UserError, nearest
from kdjax.inspection.affinity import result_gap
from kdjax.inspection.attention import attention
from kdjax.inspection.inspected_run import InspectedRun
from kdjax.inspection.predict import predict
from kdjax.store import Store
from kdjax.studies.cross import Job, run_jobs


class Student(NamedTuple):
    """One student, measured on the test split by its last checkpoint.

    Attributes:
      team: its teachers, a letter of `study.teachers` each; '' for a student alone.
      view: that it is trained on, a letter of `study.students`.
      seed: of it, its teachers and their split.
      scores: name -> number. Of all: 'accuracy', 'best' (by validation), 'validation' (the best there), 'gap' (training
        accuracy, clean, less 'validation'). With teachers: 'agreement' and 'information' of their mean logits with the
        student's, 'iou' and 'grad_cam_iou', means over teachers. With several: 'teachers_agreement', 'teachers_iou',
        'teachers_grad_cam_iou', means over pairs. Agreements and information are of clean images, and as NAME_in_view
        of images under the student's view.
    """

    team: str
    view: str
    seed: int
    scores: dict[str, float]


def run(study: ConfigDict, store: Store, data_dir: str, counter: Callable[[int], Callable[[str], None]]) -> list:
    """Trains the study's teachers and students and returns the students, measured.

    Args:
      study: of kind 'attention_fidelity', see configs/studies/attention_fidelity.py.
      store: for its runs; what is there is not trained again.
      data_dir: where data sets that are not embedded lie.
      counter: makes of the number of runs what is called after each with its name.

    Raises:
      UserError: a team with a letter that is no teacher.
    """
    jobs = make_jobs(study)
    results, students = run_jobs(jobs, store, data_dir, counter(len(jobs))), []
    teachers = {(job.seed, job.teacher): job.name for job in jobs if not job.student}
    for seed in study.seeds:
        seen = {
            label: InspectedRun(store, name, "test", "last", data_dir)
            for (s, label), name in teachers.items()
            if s == seed
        }
        for job, result in zip(jobs, results, strict=True):
            if job.student and job.seed == seed:
                team = [seen[label] for label in members(job.teacher)]
                own = InspectedRun(store, job.name, "test", "last", data_dir)
                scores = {**_of_result(result), **_answers(own, team), **_looks(own, team)}
                students.append(Student(job.teacher, job.student, seed, scores))
    return students


def members(team: str) -> tuple[str, ...]:
    """Returns a team's teachers, each view's counted from 1: 'wws' is ('w1', 'w2', 's1')."""
    return tuple(f"{view}{team[: place + 1].count(view)}" for place, view in enumerate(team))


def make_jobs(study: ConfigDict) -> list[Job]:
    """Lists the study's runs, the teachers of a seed before its students, each teacher once.

    Args:
      study: as `run` takes it.

    Raises:
      UserError: of `run`.
    """
    for letter in sorted(set("".join(study.teams))):
        if letter not in study.teachers:
            raise UserError(f"config.teams: '{letter}' is no teacher.{nearest(letter, study.teachers)}")
    jobs, needed = [], sorted({label for team in study.teams for label in members(team)})
    for seed in study.seeds:
        teachers = {label: _teacher(study, label, seed) for label in needed}
        jobs += [Job("", label, seed, seed, config) for label, config in teachers.items()]
        names = {label: default_run_name(config) for label, config in teachers.items()}
        for team, view in itertools.product(("", *study.teams), study.students):
            jobs.append(Job(view, team, seed, seed, _student(study, team, view, seed, names)))
    return jobs


def _teacher(study: ConfigDict, label: str, seed: int) -> ConfigDict:
    view, place = label[0], int(label[1:])
    config = ConfigDict(study.teachers[view].to_dict())
    config.name, config.seed, config.data.split_seed = label, 10 * seed + place, seed
    return config


def _student(study: ConfigDict, team: str, view: str, seed: int, names: dict[str, str]) -> ConfigDict:
    config = ConfigDict(study.students[view].to_dict())
    config.name = f"{'to' if team else 'alone'}-{view}"
    config.seed, config.data.split_seed = seed, seed
    config.teachers = ConfigDict({label: {"run": names[label]} for label in members(team)})
    if not team:
        config.losses = ConfigDict(study.alone.to_dict())
    return config


def _of_result(result: dict) -> dict[str, float]:
    last, best = result["last"], result["best"]
    accuracies = {"accuracy": last["test"], "best": best["test"], "validation": best["validation"]}
    return {**{name: scores["accuracy"] for name, scores in accuracies.items()}, "gap": result_gap(result)}


def _answers(student: InspectedRun, team: Sequence[InspectedRun]) -> dict[str, float]:
    """Agreements and information on clean images, and on the very same augmented ones."""
    found = {}
    for suffix, view in (("", "none"), ("_in_view", student.view)) if team else ():
        own, *taught = (_logits(run, view, student.loaded.config.seed) for run in (student, *team))
        scores = analysis.fidelity_scores(analysis.ensemble(taught), own)
        found |= {f"agreement{suffix}": scores["agreement"], f"information{suffix}": scores["mutual_information"]}
        if len(taught) > 1:
            answers = [logits.argmax(axis=1) for logits in taught]
            pairs = [np.mean(a == b) for a, b in itertools.combinations(answers, 2)]
            found[f"teachers_agreement{suffix}"] = float(np.mean(pairs))
    return found


def _logits(run: InspectedRun, view: str, seed: int) -> np.ndarray:
    """Under a view that `seed` draws for whatever run: networks are compared on the same images."""
    options, own = {"view": view, "seed": seed}, run.loaded
    return predict(own.network, own.dataset, run.split, own.batch_size, own.devices, **options).logits


def _looks(student: InspectedRun, team: Sequence[InspectedRun]) -> dict[str, float]:
    """Mean overlaps of the student with each teacher, and of teachers with each other."""
    found: dict[str, list] = {}
    for row in attention([student, *team]).overlaps if team else ():
        if len(row.runs) == 2:
            who = "" if student.name in row.runs else "teachers_"
            kind = "grad_cam_iou" if row.map == "Grad-CAM" else "iou"
            found.setdefault(who + kind, []).append(row.iou)
    return {name: float(np.mean(values)) for name, values in found.items()}

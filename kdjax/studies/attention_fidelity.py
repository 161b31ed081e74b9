"""Do low fidelity and diverse attention go with better students? Teams of weakly and strongly augmented teachers.

The experiment of Guo, Why does Knowledge Distillation Work? Rethink its Attention and Fidelity Mechanism (Expert
Systems with Applications 262, 2025), whose students learn from one to three teachers on either view.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, cast

import jax.numpy as jnp
import numpy as np
from jax import Array

from kdjax import analysis
from kdjax.errors import UserError
from kdjax.inspection.affinity import overfit_gap
from kdjax.inspection.attention import attention
from kdjax.inspection.inspected_run import InspectedRun
from kdjax.inspection.predict import predict
from kdjax.reporting.contrasts import interval
from kdjax.reporting.figures import Figure, Series, scatter
from kdjax.reporting.statistics import spearman
from kdjax.reporting.tables import markdown, spread
from kdjax.run_names import default_run_name
from kdjax.studies.fields import RunConfig, check_known
from kdjax.studies.runner import FinishedRun, Job, Runner, redrawn_overlap, seeded


class AttentionKey(NamedTuple):
    """Which run of the study a job is.

    Attributes:
      team: Letters of a student's teachers, '' for a student without any; label of a teacher, such as 'w1'.
      view: Letter of the student's view in `students`; '' for a teacher.
      seed: Seed of the data split; also of the student.
    """

    team: str
    view: str
    seed: int


class AttentionStudent(NamedTuple):
    """One student, measured on the test split with its last checkpoint.

    Attributes:
      team: Letters of its teachers in `teachers`; '' for a student without any.
      view: Letter of its view in `students`.
      seed: Seed of the student and of the data split.
      scores: Name -> score. All students have 'accuracy', 'best' (of the best checkpoint by validation), 'validation'
        (the best there) and 'gap' (training accuracy on clean images minus 'validation'). Students with teachers have
        'agreement' and 'information' of the teachers' mean logits with their own, and 'iou' and 'grad_cam_iou', means
        over teachers; students with several teachers 'teachers_agreement', 'teachers_iou' and 'teachers_grad_cam_iou',
        means over pairs. Agreements and information are on clean images, and as NAME_in_view on images under the
        student's view.
      overlap: Test examples per training example where the seeds' splits redraw the same examples, else 0.
    """

    team: str
    view: str
    seed: int
    scores: dict[str, float]
    overlap: float = 0.0


class Measure(NamedTuple):
    """How a score is shown.

    Attributes:
      key: Name of the score.
      scale: What it is multiplied by.
      digits: Digits after the decimal point.
      claim: Sign of the effect of stronger views in the paper; '' where it says nothing.
    """

    key: str
    scale: float = 100.0
    digits: int = 2
    claim: str = ""


OUTCOMES = {
    "accuracy, last": Measure("accuracy", claim="+"),
    "accuracy, best": Measure("best", claim="+"),
    "validation": Measure("validation", claim="+"),
    "over-fitting gap": Measure("gap", claim="−"),
}
TEACHERS = {
    "teachers' agreement": Measure("teachers_agreement"),
    "teachers' agreement in view": Measure("teachers_agreement_in_view", claim="−"),
    "teachers' IoU": Measure("teachers_iou", claim="−"),
    "teachers' IoU, Grad-CAM": Measure("teachers_grad_cam_iou"),
}
FIDELITY = {
    "agreement": Measure("agreement", claim="−"),
    "agreement in view": Measure("agreement_in_view", claim="−"),
    "information": Measure("information", 1.0, 3, claim="−"),
    "information in view": Measure("information_in_view", 1.0, 3, claim="−"),
    "IoU": Measure("iou"),
    "IoU, Grad-CAM": Measure("grad_cam_iou"),
}
VIEWS = {"w": "weak", "s": "strong"}
Setting = tuple[str, str]  # (team, view)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionStudy:
    """Fields of a study of kind 'attention_fidelity'.

    Attributes:
      title: Title of the report.
      seeds: Seeds; each has its own data split and teachers.
      teams: Teams of teachers, one letter of `teachers` per teacher: 'ws' is a weak and a strong one.
      teachers: Letter of a view -> config of the teachers on it.
      students: Letter of a view -> config of the students on it.
      alone: Losses of the students without teachers.
    """

    title: str
    seeds: tuple[int, ...]
    teams: tuple[str, ...]
    teachers: dict[str, RunConfig]
    students: dict[str, RunConfig]
    alone: dict

    def __post_init__(self) -> None:
        check_known("teams", sorted(set("".join(self.teams))), self.teachers)

    def run(self, runner: Runner) -> list[AttentionStudent]:
        """Trains all teachers, then all students, and measures the students."""
        runs = runner.run_stages(make_stages(self))
        teachers = {run.key: run.name for run in runs if not run.key.view}
        students = []
        for seed in self.seeds:
            own = {key.team: _load(runner, name) for key, name in teachers.items() if key.seed == seed}
            of_seed = [run for run in runs if run.key.view and run.key.seed == seed]
            students += [_measure(run, [own[label] for label in members(run.key.team)], runner) for run in of_seed]
        overlap = redrawn_overlap(runs)
        return [student._replace(overlap=overlap) for student in students]

    def report(self, outcome: Sequence[AttentionStudent]) -> str:
        """Returns the tables of students, contrasts and correlations in Markdown."""
        parts = [
            f"# {self.title}",
            f"{len(self.seeds)} seeds, each with its own data split and teachers. A letter is a teacher, w trained on "
            "the weak view and s on the strong one; 'to' is the student's view. Test split, last checkpoint; "
            "accuracies, agreements and IoU in %, mutual information in nats; ± is the standard deviation over seeds, "
            "[ ] a 95 % t interval of paired differences over seeds. Agreement and information are those of the "
            "teachers' mean logits with the student, on clean images and 'in view', on images under the student's "
            "view; IoU is that of class-activation maps on clean images.",
            _students_table(outcome, OUTCOMES, alone=True),
            _students_table(outcome, {**TEACHERS, **FIDELITY}),
            "Strong minus weak view, of all teachers at a student's view, of the student with the same teachers, and "
            "of all of them; means over the rest, and what the paper says of stronger views:",
            _contrasts_table(outcome),
            "Spearman's rank correlation with last test accuracy over settings: of their means, and within a seed, "
            "mean and 95 % t interval over seeds, for all settings and those of one student's view:",
            _correlations_table(outcome),
        ]
        return "\n\n".join(parts) + "\n"

    def figures(self, outcome: Sequence[AttentionStudent]) -> list[Figure]:
        """Returns accuracy against fidelity and against the overlap of the teachers' attention, a point per student."""
        drawn = []
        shown = {"agreement": "agreement with the teachers", "teachers_iou": "IoU of the teachers' maps"}
        for key, words in shown.items():
            series = []
            for view, name in VIEWS.items():
                scores = [student.scores for student in outcome if student.view == view and key in student.scores]
                points = [[100 * own[k] for own in scores] for k in (key, "accuracy")]
                series.append(Series(f"student on the {name} view", *points))
            axes = (f"{words} [%]", "student's test accuracy [%]")
            caption = "Each point is a student, on clean images."
            drawn.append(scatter(key, f"Accuracy by {words}", caption, axes, series))
        return drawn


def members(team: str) -> tuple[str, ...]:
    """Returns the labels of a team's teachers, counted from 1 for each view: 'wws' is ('w1', 'w2', 's1').

    Args:
      team: A letter per teacher.
    """
    return tuple(f"{view}{team[: place + 1].count(view)}" for place, view in enumerate(team))


def make_stages(study: AttentionStudy) -> list[list[Job[AttentionKey]]]:
    """Returns two stages: the teachers, each once, and the students of every team on every view.

    Args:
      study: The study.
    """
    teachers, students, needed = [], [], sorted({label for team in study.teams for label in members(team)})
    for seed in study.seeds:
        names = {}
        for label in needed:
            config = _teacher_config(study, label, seed)
            names[label] = default_run_name(config)
            teachers.append(Job(AttentionKey(label, "", seed), names[label], config))
        for team, view in itertools.product(("", *study.teams), study.students):
            config = _student_config(study, team, view, seed, names)
            students.append(Job(AttentionKey(team, view, seed), default_run_name(config), config))
    return [teachers, students]


def _teacher_config(study: AttentionStudy, label: str, seed: int) -> RunConfig:
    view, place = label[0], int(label[1:])
    config = seeded(study.teachers[view], 10 * seed + place, seed)
    config.name = label
    return config


def _student_config(study: AttentionStudy, team: str, view: str, seed: int, names: Mapping[str, str]) -> RunConfig:
    config = seeded(study.students[view], seed, seed)
    config.name = f"{'to' if team else 'alone'}-{view}"
    config.teachers = RunConfig({label: {"run": names[label]} for label in members(team)})
    if not team:
        config.losses = RunConfig(study.alone)
    return config


def _load(runner: Runner, name: str) -> InspectedRun:
    return InspectedRun(runner.store, name, "test", "last", runner.data_dir)


def _measure(run: FinishedRun[AttentionKey], team: Sequence[InspectedRun], runner: Runner) -> AttentionStudent:
    student = _load(runner, run.name)
    scores = {**_accuracies(run, student), **_fidelity(student, team), **_overlaps(student, team)}
    return AttentionStudent(run.key.team, run.key.view, run.key.seed, scores)


def _accuracies(run: FinishedRun[AttentionKey], student: InspectedRun) -> dict[str, float]:
    gap = overfit_gap(student)
    if gap is None or "best" not in run.result:
        raise UserError(f"run '{run.name}' has no best checkpoint; train with config.data.validation above 0.")
    return {
        "accuracy": run.score("last", "test"),
        "best": run.score("best", "test"),
        "validation": run.score("best", "validation"),
        "gap": gap,
    }


def _fidelity(student: InspectedRun, team: Sequence[InspectedRun]) -> dict[str, float]:
    """Returns agreements and information on clean images, and on the same augmented images for all networks."""
    found, seed = {}, cast(RunConfig, student.loaded.config).seed
    for suffix, view in (("", "none"), ("_in_view", student.view)) if team else ():
        own, *teachers = (_logits(run, view, seed) for run in (student, *team))
        scores = analysis.fidelity_scores(analysis.ensemble(teachers), own)
        found |= {f"agreement{suffix}": scores["agreement"], f"information{suffix}": scores["mutual_information"]}
        if len(teachers) > 1:
            pairs = itertools.combinations(teachers, 2)
            agreements = [analysis.fidelity_scores(*pair)["agreement"] for pair in pairs]
            found[f"teachers_agreement{suffix}"] = float(np.mean(agreements))
    return found


def _logits(run: InspectedRun, view: str, seed: int) -> Array:
    """Returns the logits of a run under a view that is drawn from `seed`, so that networks see the same images."""
    loaded, options = run.loaded, {"view": view, "seed": seed}
    outputs = predict(loaded.network, loaded.dataset, run.split, loaded.batch_size, loaded.devices, **options)
    return jnp.asarray(outputs.logits)


def _overlaps(student: InspectedRun, team: Sequence[InspectedRun]) -> dict[str, float]:
    """Returns mean overlaps of the student's regions with each teacher's, and of the teachers' with each other."""
    found: dict[str, list[float]] = {}
    for row in attention([student, *team]).overlaps if team else ():
        if len(row.runs) == 2:
            who = "" if student.name in row.runs else "teachers_"
            kind = "grad_cam_iou" if row.map == "Grad-CAM" else "iou"
            found.setdefault(who + kind, []).append(row.iou)
    return {name: float(np.mean(values)) for name, values in found.items()}


def _students_table(students: Sequence[AttentionStudent], measures: dict[str, Measure], alone: bool = False) -> str:
    rows = []
    for team, view in dict.fromkeys((s.team, s.view) for s in students if s.team or alone):
        group = [s for s in students if (s.team, s.view) == (team, view)]
        cells = [_spread([s.scores.get(measure.key) for s in group], measure) for measure in measures.values()]
        gain = [_gain(students, team, view) if team else ""] if alone else []
        rows.append((team or "alone", VIEWS.get(view, view), *cells, *gain, len(group)))
    gain = ["last − alone"] if alone else []
    return markdown(("teachers", "to", *measures, *gain, "n"), rows)


def _spread(values: Sequence[float | None], measure: Measure) -> str:
    known = [measure.scale * value for value in values if value is not None]
    return spread(known, measure.digits) if len(known) == len(values) else "-"


def _gain(students: Sequence[AttentionStudent], team: str, view: str) -> str:
    at = {(s.team, s.view, s.seed): 100 * s.scores["accuracy"] for s in students}
    seeds = [seed for t, v, seed in at if (t, v) == (team, view)]
    return interval([at[team, view, seed] - at["", view, seed] for seed in seeds], overlap=students[0].overlap)


def _contrasts_table(students: Sequence[AttentionStudent]) -> str:
    at = {AttentionKey(s.team, s.view, s.seed): s.scores for s in students}
    partners: dict[str, Callable[[str, str], Setting | None]] = {
        "teachers": lambda team, view: (team.replace("w", "s"), view) if set(team) == {"w"} else None,
        "student": lambda team, view: (team, "s") if team and view == "w" else None,
        "both": lambda team, view: (team.replace("w", "s"), "s") if set(team) == {"w"} and view == "w" else None,
    }
    rows = []
    for name, measure in {**OUTCOMES, **TEACHERS, **FIDELITY}.items():
        cells = [_contrast(at, partner, measure, students[0].overlap) for partner in partners.values()]
        rows.append((name, *cells, measure.claim))
    return markdown(("strong − weak", *partners, "paper"), rows)


def _contrast(
    at: Mapping[AttentionKey, Mapping[str, float]],
    partner: Callable[[str, str], Setting | None],
    measure: Measure,
    overlap: float,
) -> str:
    """Returns the mean difference over all settings that have a stronger partner, with its interval over seeds.

    It is '-' where no setting has a partner, and where all differences are 0: teachers on clean images do not depend on
    the student's view.
    """
    differences: dict[int, list[float]] = {}
    for (team, view, seed), scores in at.items():
        setting = partner(team, view)
        stronger = at.get(AttentionKey(*setting, seed), {}) if setting else {}
        if measure.key in scores and measure.key in stronger:
            difference = measure.scale * (stronger[measure.key] - scores[measure.key])
            differences.setdefault(seed, []).append(difference)
    means = [float(np.mean(values)) for values in differences.values()]
    return interval(means, measure.digits, overlap) if np.any(means) else "-"


def _correlations_table(students: Sequence[AttentionStudent]) -> str:
    groups = {"all": students, **{f"to {name}": [s for s in students if s.view == v] for v, name in VIEWS.items()}}
    rows = []
    for name, measure in {"over-fitting gap": OUTCOMES["over-fitting gap"], **TEACHERS, **FIDELITY}.items():
        cells = [cell for group in groups.values() for cell in _correlation(group, measure.key)]
        rows.append((name, *cells))
    header = [title for group in groups for title in (f"{group}, means", f"{group}, within a seed")]
    return markdown(("accuracy with", *header), rows)


def _correlation(students: Sequence[AttentionStudent], key: str) -> tuple[str, str]:
    """Returns the correlation of the settings' means and that within a seed; '-' where there is none."""
    having = [s for s in students if s.team and key in s.scores]
    settings: dict[Setting, list[tuple[float, float]]] = {}
    for student in having:
        settings.setdefault((student.team, student.view), []).append((student.scores[key], student.scores["accuracy"]))
    means = [np.mean(values, axis=0) for values in settings.values()]
    of_means = spearman([x for x, _ in means], [y for _, y in means])
    within = []
    for seed in dict.fromkeys(s.seed for s in having):
        own = [s.scores for s in having if s.seed == seed]
        within.append(spearman([scores[key] for scores in own], [scores["accuracy"] for scores in own]))
    within = [value for value in within if not np.isnan(value)]
    return ("-" if np.isnan(of_means) else f"{of_means:+.2f}"), (
        interval(within, overlap=students[0].overlap) if within else "-"
    )

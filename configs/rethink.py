"""What the configs of Guo et al. (2024) share: their networks, views, schedules, and the values as they were released.

An argument is words in any order: a data set (`digits`, `smoke`, `cifar100`), the teachers' views (`w`, `s`, `ww`,
`wws` ...: weak or strong, one letter a teacher), `to_weak` or `to_strong` for the student's view, `as_released`.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from configs import common
from kdjax.config import TEACHER
from kdjax.errors import UserError, nearest

# data set -> (teacher's network, student's network, weak view, strong view)
SETTINGS = {
    "digits": ("resnet14", "resnet8", "crop", "crop+rotate:15+cutout:3"),
    "smoke": ("resnet8", "resnet8", "crop", "crop+rotate:15+cutout:3"),
    "cifar100": ("resnet50", "resnet18", "rrc_flip_rotate", "autoaugment_cifar10"),
}
EPOCHS = {"digits": (20, 30), "smoke": (1, 1), "cifar100": (61, 200)}  # teacher, student
MILESTONES = {"digits": ((15,), (25,)), "smoke": ((), ()), "cifar100": ((25, 40, 60), (190, 195))}
# Epochs of the released teachers by place and view, where the names of their files tell them.
RELEASED_EPOCHS = {("w", 1): 61, ("w", 2): 61, ("s", 1): 80, ("s", 2): 45, ("w", 3): 45, ("s", 3): 45}
SMALL = {"widths": (4, 4, 6, 8)}


class Words(NamedTuple):
    """What an argument chose."""

    dataset: str
    teachers: str
    view: str
    released: bool


def parse(argument: str | None, count: int) -> Words:
    """Reads an argument for `count` teachers; weak teachers and a weak view where it says nothing."""
    dataset, teachers, view, released = "digits", "w" * count, "w", False
    for word in (argument or "digits").split(","):
        if word in SETTINGS:
            dataset = word
        elif word in ("to_weak", "to_strong"):
            view = word[3]
        elif word == "as_released":
            released = True
        elif word and set(word) <= set("ws") and len(word) == count:
            teachers = word
        else:
            hint = nearest(word, [*SETTINGS, "to_weak", "to_strong", "as_released", "w" * count, "s" * count])
            raise UserError(f"config argument '{argument}': '{word}' is no word of this config.{hint}")
    return Words(dataset, teachers, view, released)


def teacher(view: str, place: int, words: Words) -> ConfigDict:
    """Returns the run of a teacher: its place among those of one view is its seed, from 1."""
    config = _common(words, SETTINGS[words.dataset][0], view, 0)
    config.name, config.seed = run_name(view, place, words).rsplit("-", 1)[0].partition("-")[2], place
    config.losses = {"cross_entropy": {"weight": 1.0, "label_smoothing": 0.0}}
    if words.released and words.dataset == "cifar100":
        config.epochs = RELEASED_EPOCHS[view, place]
        config.notes = (*config.notes, f"as released: this teacher is trained for {config.epochs} epochs")
    return config


def run_name(view: str, place: int, words: Words) -> str:
    """Returns the name of a teacher's run in the store."""
    network = SETTINGS[words.dataset][0]
    smoke, released = "-smoke" * (words.dataset == "smoke"), "-released" * words.released
    dataset = "digits" if words.dataset == "smoke" else words.dataset
    return f"{dataset}/{network}-rethink-{view}{smoke}{released}-s{place}"


def student(argument: str | None, count: int) -> ConfigDict:
    """Returns a student of `count` teachers, by the mean of their complete losses."""
    words = parse(argument, count)
    config = _common(words, SETTINGS[words.dataset][1], words.view, 1)
    config.name = f"rethink-{words.teachers}-to-{words.view}" + "-smoke" * (words.dataset == "smoke")
    config.teachers = {name: _teacher_field(words, i) for i, name in enumerate("abc"[:count])}
    label_weight, temperature = (0.6, 3.0) if words.released else (0.2, 10.0)
    config.losses = {
        "cross_entropy": {"weight": label_weight, "label_smoothing": 0.0},
        "kd": {"weight": 1 - label_weight, "temperature": temperature},
    }
    if words.released:
        config.teacher_batch_norm = "batch"
        config.notes = (
            *config.notes,
            "as released: temperature 3 and label weight 0.6 (the paper says temperature 10)",
            "as released: teachers run on batch statistics (config.teacher_batch_norm = 'batch')",
        )
    return config


def _teacher_field(words: Words, index: int) -> dict:
    view = words.teachers[index]
    place = words.teachers[: index + 1].count(view)
    run, released = run_name(view, place, words), ",as_released" * words.released
    argument = f"{words.dataset},{view}{released}"
    made_by = f"python -m kdjax.train_teacher --config=configs/rethink_teacher.py:{argument},{place} --run={run}"
    return {**TEACHER, "run": run, "made_by": made_by}


def _common(words: Words, network: str, view: str, stage: int) -> ConfigDict:
    """Data, network and schedule; stage 0 is a teacher's, 1 a student's."""
    setting = SETTINGS[words.dataset]
    config = common.student("cifar100,resnet8,resnet8" if words.dataset == "cifar100" else "digits,resnet8,resnet8")
    config.model.name, config.data.view = network, setting[3] if view == "s" else setting[2]
    config.epochs = EPOCHS[words.dataset][stage]
    config.schedule.name, config.schedule.milestones = "step", MILESTONES[words.dataset][stage]
    if words.dataset == "smoke":
        config.model.args = SMALL
    if words.dataset != "cifar100":
        return config
    config.data.size, config.batch_size = 224, 128
    config.optimizer.learning_rate, config.optimizer.weight_decay = 0.1, 0.0
    config.schedule.warmup_epochs = 8
    if words.released:
        config.data.args = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010)}
        config.schedule.name, config.schedule.args = "step_early", {"ramp": config.schedule.warmup_epochs}
        config.schedule.warmup_epochs = 0
        config.notes = (
            "as released: CIFAR-100 is normalised with CIFAR-10's statistics",
            "as released: learning rates change by whole epochs and one early, so the warm-up begins at 2/8",
        )
    return config

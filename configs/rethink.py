"""What the configs of Guo et al. (2024) share: networks, views, schedules, and the values of their released code.

The words of an argument, in any order: a data set (`digits`, `smoke` or `cifar100`); the views of the teachers, weak
or strong, with a letter for each teacher (`w`, `s`, `ww`, `wws`, ...); `to_weak` or `to_strong` for the student's view;
and `as_released` for the values of the released code where they differ from the paper's.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from configs import common
from kdjax.config import TEACHER


class Setting(NamedTuple):
    """The networks and views of a data set."""

    teacher: str
    student: str
    weak_view: str
    strong_view: str


SETTINGS = {
    "digits": Setting("resnet14", "resnet8", "crop", "crop+rotate:15+cutout:3"),
    "smoke": Setting("resnet8", "resnet8", "crop", "crop+rotate:15+cutout:3"),
    "cifar100": Setting("resnet50", "resnet18", "rrc_flip_rotate", "autoaugment_cifar10"),
}


class Schedule(NamedTuple):
    """The length of a run and the epochs after which the learning rate drops."""

    epochs: int
    milestones: tuple[int, ...]


TEACHER_SCHEDULES = {
    "digits": Schedule(20, (15,)),
    "smoke": Schedule(1, ()),
    "cifar100": Schedule(61, (25, 40, 60)),
}
STUDENT_SCHEDULES = {
    "digits": Schedule(30, (25,)),
    "smoke": Schedule(1, ()),
    "cifar100": Schedule(200, (190, 195)),
}
# Epochs of the released teachers, by view and place, as the names of their files say.
RELEASED_EPOCHS = {("w", 1): 61, ("w", 2): 61, ("s", 1): 80, ("s", 2): 45, ("w", 3): 45, ("s", 3): 45}
SMALL = {"widths": (4, 4, 6, 8)}
VIEWS = {  # number of teachers -> the words for their views
    1: ("w", "s"),
    2: ("ww", "ws", "sw", "ss"),
    3: ("www", "wws", "wsw", "wss", "sww", "sws", "ssw", "sss"),
}


class Words(NamedTuple):
    """What an argument chose.

    Attributes:
      dataset: Key of SETTINGS.
      teachers: 'w' or 's' for each teacher.
      view: 'w' or 's', the student's view.
      released: Whether to use the values of the released code.
      place: Place of a teacher among those of its view, from 1.
    """

    dataset: str
    teachers: str
    view: str
    released: bool
    place: int = 1


def parse(argument: str | None, count: int, places: tuple[str, ...] = ()) -> Words:
    """Reads an argument.

    Args:
      argument: The argument of a config; the default is digits and weak views.
      count: Number of teachers.
      places: Words for the place of a teacher, for the config of one teacher.
    """
    kinds = {
        "teachers": VIEWS[count],
        "view": ("to_weak", "to_strong"),
        "values": ("as_released",),
        "place": places,
    }
    form = f"[DATASET][,VIEWS][,to_weak|to_strong][,as_released]{'[,PLACE]' if places else ''}"
    words = common.read(argument, common.Grammar(form, tuple(SETTINGS), options=kinds))
    return Words(
        words.dataset,
        words.options.get("teachers", "w" * count),
        "s" if words.options.get("view") == "to_strong" else "w",
        "values" in words.options,
        int(words.options.get("place", 1)),
    )


def teacher(view: str, place: int, words: Words) -> ConfigDict:
    """Returns the config of a teacher.

    Args:
      view: 'w' or 's'.
      place: Its place among the teachers of this view, from 1, which is its seed.
      words: The data set and whether to use the values of the released code.
    """
    config = _common(words, SETTINGS[words.dataset].teacher, view, TEACHER_SCHEDULES[words.dataset])
    config.name = run_name(view, place, words).rsplit("-", 1)[0].partition("-")[2]
    config.seed = place
    config.losses = {"cross_entropy": {"weight": 1.0, "label_smoothing": 0.0}}
    if words.released and words.dataset == "cifar100":
        config.epochs = RELEASED_EPOCHS[view, place]
        config.notes = (*config.notes, f"as released: this teacher is trained for {config.epochs} epochs")
    return config


def run_name(view: str, place: int, words: Words) -> str:
    """Returns the name of a teacher's run in the store."""
    network = SETTINGS[words.dataset].teacher
    smoke = "-smoke" if words.dataset == "smoke" else ""
    released = "-released" if words.released else ""
    dataset = "digits" if words.dataset == "smoke" else words.dataset
    return f"{dataset}/{network}-rethink-{view}{smoke}{released}-s{place}"


def student(argument: str | None, count: int) -> ConfigDict:
    """Returns the config of a student of `count` teachers, whose loss is the mean of the teachers' complete losses."""
    words = parse(argument, count)
    config = _common(words, SETTINGS[words.dataset].student, words.view, STUDENT_SCHEDULES[words.dataset])
    smoke = "-smoke" if words.dataset == "smoke" else ""
    config.name = f"rethink-{words.teachers}-to-{words.view}{smoke}"
    config.teachers = {name: _teacher_field(words, index) for index, name in enumerate("abc"[:count])}
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
            "as released: teachers use the statistics of the batch (config.teacher_batch_norm = 'batch')",
        )
    return config


def _teacher_field(words: Words, index: int) -> dict:
    """Returns an entry of `config.teachers`, with the command that trains the teacher."""
    view = words.teachers[index]
    place = words.teachers[: index + 1].count(view)
    run = run_name(view, place, words)
    released = ",as_released" if words.released else ""
    argument = f"{words.dataset},{view}{released},{place}"
    made_by = f"python -m kdjax.train_teacher --config=configs/rethink_teacher.py:{argument} --run={run}"
    return {**TEACHER, "run": run, "made_by": made_by}


def _common(words: Words, network: str, view: str, schedule: Schedule) -> ConfigDict:
    """Returns data, network and schedule of a teacher or a student."""
    setting = SETTINGS[words.dataset]
    config = common.student("cifar100,resnet8,resnet8" if words.dataset == "cifar100" else "digits,resnet8,resnet8")
    config.model.name = network
    config.data.view = setting.strong_view if view == "s" else setting.weak_view
    config.epochs = schedule.epochs
    config.schedule.name = "step"
    config.schedule.milestones = schedule.milestones
    if words.dataset == "smoke":
        config.model.args = SMALL
    if words.dataset == "cifar100":
        _use_paper_recipe(config)
        if words.released:
            _use_released_recipe(config)
    return config


def _use_paper_recipe(config: ConfigDict) -> None:
    """Sets the recipe of the paper on CIFAR-100, where images are enlarged to 224x224."""
    config.data.size = 224
    config.batch_size = 128
    config.optimizer.learning_rate = 0.1
    config.optimizer.weight_decay = 0.0
    config.schedule.warmup_epochs = 8


def _use_released_recipe(config: ConfigDict) -> None:
    """Sets what the released code does otherwise, after `_use_paper_recipe`."""
    config.data.args = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010)}
    config.schedule.name = "step_early"
    config.schedule.args = {"ramp": config.schedule.warmup_epochs}
    config.schedule.warmup_epochs = 0
    config.notes = (
        "as released: CIFAR-100 is normalised with the statistics of CIFAR-10",
        "as released: the learning rate changes once an epoch and one epoch early, so the warm-up begins at 2/8",
    )

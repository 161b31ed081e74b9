"""What a study of teachers measures of a teacher, on data of several kinds, and what a seed changes in the data."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from kdjax import analysis
from kdjax.data import Dataset
from kdjax.errors import UserError
from kdjax.inspection.predict import LoadedRun, load_run, predict
from kdjax.losses import cross_entropy
from kdjax.studies.fields import RunConfig, known_distributions
from kdjax.studies.runner import Runner
from kdjax.training.teacher_temperatures import DIGITS

VISITS = 4  # views of every training image on which a teacher is measured: those of the students' first epochs
ANNOTATORS = ("annotator1", "annotator2", "annotator3")


class Shown(NamedTuple):
    """The views of the training images in which students see a teacher.

    Attributes:
      view: Name of the students' view; '' for that of the teacher's config.
      seed: Seed of the students' views.
    """

    view: str
    seed: int


class Targets(NamedTuple):
    """What a teacher's outputs are compared with, for all rows of a data set.

    Attributes:
      labels: Labels [draws, rows] that the teacher was not trained on, each an independent draw from p*.
      mean: Distributions [rows, classes]: p* itself, or the mean of the draws that stand for it; None where neither is
        known on training images.
      drawn: Whether `mean` is that of draws. The squared distance is then the mean of |p - e|^2 over draws e, which is
        larger than that to p* by as much for every teacher.
    """

    labels: np.ndarray
    mean: np.ndarray | None
    drawn: bool


class Measured(NamedTuple):
    """What was measured of a teacher.

    Attributes:
      scores: Name -> value, see `measure_teacher`.
      bins: Its reliability, see `ResultRow`.
      correct: Whether each test image was classified rightly, bool [examples].
    """

    scores: dict[str, float]
    bins: tuple[tuple[float, ...], ...]
    correct: np.ndarray


def measure_teacher(runner: Runner, run: str, checkpoint: str, fitted: bool, kind: str, shown: Shown) -> Measured:
    """Measures a run as a teacher.

    Args:
      runner: Runner whose store has the run.
      run: Name of the run.
      checkpoint: 'last' or 'best'.
      fitted: Whether its logits are divided by the temperature that is fitted on its validation labels.
      kind: Key of DATA.
      shown: The views in which students see it.

    Returns:
      Scores. 'accuracy' on the test split; 'temperature' if it is fitted; 'nll' and 'ece' on images that the teacher
      has not seen, against labels that it was not trained on. Where the data has distributions also 'seen' and
      'unseen', the squared distance to them on the training images under the students' views and on images that the
      teacher has not seen, and 'memorisation': by how much farther it is from draws of p* than from its own labels, on
      the training images under those views. With annotators also 'test_distance', the squared distance to the
      distributions of the test images, which are those of other people.
    """
    loaded, data = load_run(runner.store, run, checkpoint, runner.data_dir), DATA[kind]
    dataset, targets = loaded.dataset, data.targets(loaded.dataset)
    temperature = _fit(loaded) if fitted else 1.0
    rows = {"test": dataset.splits["test"], "unseen": data.unseen(dataset), "seen": dataset.splits["train"]}
    test, unseen = (_predict(loaded, rows[name]) / temperature for name in ("test", "unseen"))
    scores = {"temperature": temperature} if fitted else {}
    scores |= {"accuracy": analysis.accuracy(test, dataset.labels[rows["test"]])}
    scores |= _against_draws(unseen, targets.labels[:, rows["unseen"]])
    if targets.mean is not None:
        views = [_predict(loaded, rows["seen"], shown, visit) / temperature for visit in range(VISITS)]
        own = np.eye(dataset.num_classes)[dataset.labels[rows["seen"]]]
        others = targets.mean[rows["seen"]]
        scores["seen"] = _mean(distance(view, others, targets.drawn) for view in views)
        scores["unseen"] = distance(unseen, targets.mean[rows["unseen"]], targets.drawn)
        scores["memorisation"] = _mean(distance(z, others, True) - distance(z, own, True) for z in views)
    if targets.drawn:
        scores["test_distance"] = distance(test, known_distributions(dataset.soft)[rows["test"]], False)
    correct = np.argmax(test, axis=1) == dataset.labels[rows["test"]]
    return Measured(scores, _bins(unseen, targets.labels[:, rows["unseen"]]), correct)


def _mean(values) -> float:
    return float(np.mean(list(values)))


def _fit(loaded: LoadedRun) -> float:
    """Returns the temperature that a student's plan fits to the same teacher."""
    rows = loaded.dataset.splits["validation"]
    logits, labels = jnp.asarray(_predict(loaded, rows)), jnp.asarray(loaded.dataset.labels[rows])
    return round(analysis.fit_temperature(logits, labels), DIGITS)


def _predict(loaded: LoadedRun, rows: np.ndarray, shown: Shown | None = None, visit: int = 0) -> np.ndarray:
    """Returns logits [rows, classes] in the order of the rows."""
    dataset = dataclasses.replace(loaded.dataset, splits={"rows": rows})
    options = {}
    if shown is not None:
        options = {"view": shown.view or dataset.stored.views[0], "seed": shown.seed, "visit": visit}
    return predict(loaded.network, dataset, "rows", loaded.batch_size, loaded.devices, **options).logits


def distance(logits: np.ndarray, mean: np.ndarray, drawn: bool) -> float:
    """Returns the squared distance of outputs to distributions, summed over classes, mean over examples.

    Args:
      logits: Logits [examples, classes].
      mean: Distributions [examples, classes].
      drawn: Whether they are means of one-hot draws e. The result is then the mean of |p - e|^2, and its difference
        from |p - p*|^2 does not depend on p if the draws are independent of it.
    """
    p = analysis.softmax(logits)
    squared = np.sum((p - mean) ** 2, axis=1)
    return float(np.mean(squared + (1 - np.sum(mean**2, axis=1) if drawn else 0)))


def _against_draws(logits: np.ndarray, draws: np.ndarray) -> dict[str, float]:
    """Returns the NLL of draws [draws, examples] and the calibration error against them."""
    z = jnp.asarray(logits)
    nll = _mean(float(jnp.mean(cross_entropy(z, jnp.asarray(labels)))) for labels in draws)
    return {"nll": nll, "ece": _mean(analysis.ece(z, jnp.asarray(labels)) for labels in draws)}


def _bins(logits: np.ndarray, draws: np.ndarray) -> tuple[tuple[float, ...], ...]:
    tables = [analysis.reliability_sums(jnp.asarray(logits), jnp.asarray(labels)) for labels in draws]
    sums = [np.sum([getattr(table, name) for table in tables], axis=0) for name in ("count", "predicted", "observed")]
    return tuple(tuple(float(value) for value in one) for one in zip(*sums, strict=True))


class DataKind(NamedTuple):
    """A kind of data in a study of teachers.

    Attributes:
      seeded: Returns a copy of a config whose data belongs to an outermost seed.
      targets: Returns what outputs are compared with.
      unseen: Returns rows that the teachers have not seen.
      tests: How the test images of two seeds are related: 'same', 'redrawn' from one set of images, or 'fresh'.
    """

    seeded: Callable[[RunConfig, int], RunConfig]
    targets: Callable[[Dataset], Targets]
    unseen: Callable[[Dataset], np.ndarray]
    tests: str


def annotators_of(seed: int) -> tuple[str, tuple[str, ...]]:
    """Returns the annotator whose labels a seed trains on, and the others, who are held out."""
    own = ANNOTATORS[seed % len(ANNOTATORS)]
    return own, tuple(name for name in ANNOTATORS if name != own)


def _split_by(config: RunConfig, seed: int) -> RunConfig:
    config = RunConfig(config.to_dict())
    config.data.split_seed = seed
    return config


def _labelled_by_one(config: RunConfig, seed: int) -> RunConfig:
    config = _split_by(config, seed)
    config.data.args.labels, config.data.args.annotators = annotators_of(seed)
    return config


def _drawn_anew(config: RunConfig, seed: int) -> RunConfig:
    config = _split_by(config, seed)
    config.data.args.seed = seed
    return config


def _held_out_labels(dataset: Dataset) -> Targets:
    mean = known_distributions(dataset.soft)
    last = mean.shape[1] - 1 - np.argmax(mean[:, ::-1], axis=1)  # two draws: the first and the last class with a share
    return Targets(np.stack([np.argmax(mean, axis=1), last]), mean, drawn=True)


def _own_labels(dataset: Dataset) -> Targets:
    return Targets(dataset.labels[None], None, drawn=False)


def _posterior(dataset: Dataset) -> Targets:
    return Targets(dataset.labels[None], known_distributions(dataset.soft), drawn=False)


def _in_no_split(dataset: Dataset) -> np.ndarray:
    """Returns the rows of the training set that are neither for training nor for validation."""
    rows = np.setdiff1d(np.arange(len(dataset.labels)), np.concatenate(list(dataset.splits.values())))
    if not len(rows):
        raise UserError("the study needs training images that are in no split; lower random_split's numbers.")
    return rows


def _test_rows(dataset: Dataset) -> np.ndarray:
    return dataset.splits["test"]


# Value of a study's field `data` -> the kind.
DATA = {
    "annotators": DataKind(_labelled_by_one, _held_out_labels, _in_no_split, "same"),
    "posterior": DataKind(_drawn_anew, _posterior, _test_rows, "fresh"),
    "splits": DataKind(_split_by, _own_labels, _test_rows, "redrawn"),
    "official": DataKind(_split_by, _own_labels, _test_rows, "same"),
}

"""Does a teacher that is nearer to the Bayes posterior make better students? Teachers on data whose p* is known.

Hamidi et al., How to Train the Teacher Model for Effective Knowledge Distillation, ECCV 2024, its toy experiment, with
controls: every loss at its own best rate, early stopping, calibrated and softened cross-entropy, and p* itself.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from kdjax import analysis
from kdjax.data import load_dataset
from kdjax.data.sources import gaussian_oracle
from kdjax.inspection.exchange import import_weights
from kdjax.inspection.predict import predict_run
from kdjax.interop import write_weights
from kdjax.store import Store
from kdjax.training.loop import train

ORACLE = "p*"


class Teacher(NamedTuple):
    """One teacher that students learn from.

    Attributes:
      kind: row of the table.
      seed: of the teacher; 0 for p*, of which there is one.
      run: in the store.
      checkpoint: 'last' or 'best'.
      temperature: that its logits are divided by.
      accuracy: on the test split.
      distance: mean squared distance to p* there, summed over classes.
      entropy: mean of its outputs there, in nats.
    """

    kind: str
    seed: int
    run: str
    checkpoint: str
    temperature: float
    accuracy: float
    distance: float
    entropy: float


class Student(NamedTuple):
    """One student: its loss, its teacher ('' and seed 0 for none), its own seed, and its test accuracy."""

    method: str
    kind: str
    teacher_seed: int
    seed: int
    accuracy: float


class Outcome(NamedTuple):
    """What the study found.

    Attributes:
      bayes: accuracy of p* on the test split.
      choices: what was chosen on validation, by name.
      teachers: all that students learnt from.
      students: all of them.
    """

    bayes: float
    choices: dict[str, Any]
    teachers: list[Teacher]
    students: list[Student]


class Runs:
    """Trains runs under names that are a function of what they are, and counts them."""

    def __init__(self, study: ConfigDict, store: Store, data_dir: str, done: Callable[[str], None]):
        self.study, self.store, self.data_dir, self.done = study, store, data_dir, done

    def teacher(self, losses: Mapping, rate: float, seed: int) -> tuple[str, dict]:
        """Returns the name and the result of a teacher's run."""
        config = ConfigDict(self.study.teacher.to_dict())
        config.losses, config.optimizer.learning_rate, config.seed = ConfigDict(dict(losses)), rate, seed
        words = [
            f"{name}{''.join(f'-{v:g}' for k, v in term.items() if k != 'weight')}" for name, term in losses.items()
        ]
        weights = [f"{term['weight']:g}" for term in losses.values() if term["weight"] != 1.0]
        return self._train(config, "-".join([f"gaussian/teacher-{'+'.join(words)}", *weights, f"lr{rate:g}-s{seed}"]))

    def student(self, method: str, teacher: Teacher | None, seed: int) -> tuple[str, dict]:
        """Returns the name and the result of a student's run; one without a teacher has labels alone."""
        config = ConfigDict(self.study.student.to_dict())
        config.losses, config.seed = ConfigDict(self.study.methods[method].to_dict()), 1000 + seed
        if teacher is None:
            return self._train(config, f"gaussian/student-{method}-s{seed}")
        config.teachers = ConfigDict({"a": self._teacher_field(teacher)})
        kind = teacher.kind.replace(" ", "_").replace("*", "star").replace(",", "")
        return self._train(config, f"gaussian/student-{method}-{kind}-t{teacher.seed}-s{seed}")

    def _teacher_field(self, teacher: Teacher) -> dict:
        return {"run": teacher.run, "checkpoint": teacher.checkpoint, "temperature": teacher.temperature}

    def _train(self, config: ConfigDict, name: str) -> tuple[str, dict]:
        result = train(config, self.store, name=name, data_dir=self.data_dir, show=False)
        self.done(name)
        return name, result


def run(study: ConfigDict, store: Store, data_dir: str, counter: Callable[[int], Callable[[str], None]]) -> Outcome:
    """Trains the study's teachers and students.

    Args:
      study: of kind 'posterior', see configs/studies/gaussian_posterior.py.
      store: for its runs; what is there is not trained again.
      data_dir: where data sets that are not embedded lie.
      counter: makes of the number of runs what is called after each with its name.
    """
    runs = Runs(study, store, data_dir, counter(count_runs(study)))
    rates = {loss: _best_rate(runs, loss) for loss in ("cross_entropy", "softmax_mse")}
    softened = {name: _matched(runs, name, rates) for name in study.softened}
    choices = {f"rate of {loss}": rate for loss, rate in rates.items()} | softened
    teachers = [teacher for seed in range(study.seeds) for teacher in _teachers(runs, rates, softened, seed)]
    teachers.append(_oracle(runs))
    students = [
        Student(method, "", 0, seed, _accuracy(runs.student(method, None, seed)[1]))
        for method in study.alone
        for seed in range(study.student_seeds)
    ]
    for teacher in teachers:
        for method in study.methods:
            if method not in study.alone:
                for seed in range(study.student_seeds):
                    accuracy = _accuracy(runs.student(method, teacher, seed)[1])
                    students.append(Student(method, teacher.kind, teacher.seed, seed, accuracy))
    return Outcome(_bayes(study, data_dir), choices, teachers, students)


def count_runs(study: ConfigDict) -> int:
    """Returns how many runs a study makes; those that two of its rows share count for each."""
    chosen = study.select_seeds * sum(len(rates) for rates in study.rates.values())
    matched = study.select_seeds * sum(1 + len(terms) for terms in study.softened.values())
    per_seed = len(study.rates) * 2 + len(study.softened)
    kinds = 5 + len(study.softened)
    distilled = len(study.methods) - len(study.alone)
    students = study.student_seeds * (len(study.alone) + distilled * (kinds * study.seeds + 1))
    return chosen + matched + per_seed * study.seeds + students


def _selection_seeds(study: ConfigDict) -> range:
    """Teacher seeds that choose; none of them is reported."""
    return range(100, 100 + study.select_seeds)


def _best_rate(runs: Runs, loss: str) -> float:
    """The learning rate of the best mean validation accuracy at its best epoch."""
    scores = {
        rate: np.mean(
            [
                runs.teacher({loss: {"weight": 1.0}}, rate, seed)[1]["best"]["validation"]["accuracy"]
                for seed in _selection_seeds(runs.study)
            ]
        )
        for rate in runs.study.rates[loss]
    }
    return max(scores, key=scores.get)


def _matched(runs: Runs, name: str, rates: Mapping[str, float]) -> dict:
    """The softened cross-entropy whose mean entropy on validation is nearest to the MSE teacher's."""
    seeds = _selection_seeds(runs.study)
    mse = [runs.teacher({"softmax_mse": {"weight": 1.0}}, rates["softmax_mse"], seed)[0] for seed in seeds]
    target = np.mean([_entropy(_outputs(runs, run, "best", "validation").logits) for run in mse])
    found = []
    for terms in runs.study.softened[name]:
        losses = {key: dict(term) for key, term in terms.items()}
        made = [runs.teacher(losses, rates["cross_entropy"], seed)[0] for seed in seeds]
        entropy = np.mean([_entropy(_outputs(runs, run, "best", "validation").logits) for run in made])
        found.append((abs(entropy - target), float(entropy), losses))
    _, entropy, losses = min(found, key=lambda one: one[0])
    return {"losses": losses, "entropy": entropy, "entropy of MSE": float(target)}


def _teachers(runs: Runs, rates: Mapping, softened: Mapping, seed: int) -> list[Teacher]:
    """All teachers of a seed but p*; rows that share a run differ in its checkpoint or its temperature."""
    study = runs.study
    ce, mse = {"cross_entropy": {"weight": 1.0}}, {"softmax_mse": {"weight": 1.0}}
    fixed_ce, fixed_mse = (runs.teacher(losses, study.fixed_rate, seed)[0] for losses in (ce, mse))
    own_ce = runs.teacher(ce, rates["cross_entropy"], seed)[0]
    own_mse = runs.teacher(mse, rates["softmax_mse"], seed)[0]
    outputs = _outputs(runs, own_ce, "best", "validation")
    temperature = float(analysis.fit_temperature(outputs.logits, outputs.labels))
    rows = [
        ("CE, fixed budget", fixed_ce, "last", 1.0),
        ("MSE, fixed budget", fixed_mse, "last", 1.0),
        ("CE, stopped", own_ce, "best", 1.0),
        ("MSE, stopped", own_mse, "best", 1.0),
        ("CE, stopped, calibrated", own_ce, "best", temperature),
    ]
    for name, choice in softened.items():
        rows.append((f"{name}, stopped", runs.teacher(choice["losses"], rates["cross_entropy"], seed)[0], "best", 1.0))
    return [_scored(runs, kind, seed, *row) for kind, *row in rows]


def _oracle(runs: Runs) -> Teacher:
    """p* itself, a linear classifier, as a run of the store."""
    args = runs.study.teacher.data.args.to_dict()
    weight, bias = gaussian_oracle(**args)
    path = runs.store.root / "oracle.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_weights(path, {"fc.weight": weight.astype(np.float32), "fc.bias": bias.astype(np.float32)})
    name, _ = import_weights(str(path), "mlp", runs.store, name="gaussian/oracle", args={"hidden": []})
    return _scored(runs, ORACLE, 0, name, "last", 1.0)


def _scored(runs: Runs, kind: str, seed: int, run: str, checkpoint: str, temperature: float) -> Teacher:
    outputs = _outputs(runs, run, checkpoint, "test")
    scores = analysis.posterior_scores(outputs.logits / temperature, outputs.soft)
    accuracy = float(np.mean(outputs.logits.argmax(axis=1) == outputs.labels))
    entropy = _entropy(outputs.logits / temperature)
    return Teacher(kind, seed, run, checkpoint, temperature, accuracy, float(scores["squared_distance"]), entropy)


def _outputs(runs: Runs, run: str, checkpoint: str, split: str) -> Any:
    own = {} if run != "gaussian/oracle" else {"data": runs.study.teacher.data}
    return predict_run(runs.store, run, split, checkpoint=checkpoint, data_dir=runs.data_dir, **own)


def _entropy(logits: np.ndarray) -> float:
    logits = logits.astype(np.float64)
    logs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    return float(-(np.exp(logs) * logs).sum(axis=1).mean())


def _accuracy(result: Mapping) -> float:
    """Of the best epoch by validation, as the paper's students are chosen."""
    return result["best"]["test"]["accuracy"]


def _bayes(study: ConfigDict, data_dir: str) -> float:
    data = load_dataset(study.teacher.data, data_dir)
    rows = data.splits["test"]
    return float(np.mean(data.soft[rows].argmax(axis=1) == data.labels[rows]))

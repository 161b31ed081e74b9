"""From KD to TTM and beyond: students under ever more of the Rényi entropy that TTM adds to KD, and how sure they are.

Zheng & Yang, Knowledge Distillation Based on Transformed Teacher Matching, ICLR 2024: its identity as a sweep, and the
quantities of its three figures, measured on the training examples during the last epoch and on the test split.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from kdjax import analysis, losses
from kdjax.inspection.predict import predict_run
from kdjax.store import Store
from kdjax.training.loop import train


class Student(NamedTuple):
    """One student.

    Attributes:
      label: of its losses in the study.
      seed: of it, its teacher and their split.
      accuracy: on the test split, of the last epoch.
      entropy: mean of its outputs there, in nats.
      to_transformed: mean KL(p_T || q) there, p_T the teacher's output at the study's temperature.
      train_entropy: by epoch, mean of its outputs on training batches.
      train_to_transformed: by epoch, likewise; () where the loss names another temperature, or no teacher.
    """

    label: str
    seed: int
    accuracy: float
    entropy: float
    to_transformed: float
    train_entropy: tuple[float, ...]
    train_to_transformed: tuple[float, ...]


def run(study: ConfigDict, store: Store, data_dir: str, counter: Callable[[int], Callable[[str], None]]) -> list:
    """Trains the study's teachers and students and returns the students.

    Args:
      study: of kind 'renyi', see configs/studies/renyi.py.
      store: for its runs; what is there is not trained again.
      data_dir: where data sets that are not embedded lie.
      counter: makes of the number of runs what is called after each with its name.
    """
    done, students = counter(len(study.seeds) * (1 + len(study.losses))), []
    for seed in study.seeds:
        teacher = f"{study.teacher.data.name}/teacher-s{seed}"
        train(_at(study.teacher, seed), store, name=teacher, data_dir=data_dir, show=False)
        done(teacher)
        taught = predict_run(store, teacher, data_dir=data_dir).logits
        for label, terms in study.losses.items():
            config, name = _config(study, terms, teacher, seed), f"{study.student.data.name}/{_slug(label)}-s{seed}"
            result = train(config, store, name=name, data_dir=data_dir, show=False)
            outputs = predict_run(store, name, data_dir=data_dir).logits
            rows = [row["train"] for row in store.find(name).metrics()]
            students.append(_student(study, label, seed, result, outputs, taught, rows))
            done(name)
    return students


def _at(config: ConfigDict, seed: int) -> ConfigDict:
    config = ConfigDict(config.to_dict())
    config.seed = config.data.split_seed = seed
    return config


def _config(study: ConfigDict, terms: Mapping, teacher: str, seed: int) -> ConfigDict:
    config = _at(study.student, seed)
    config.losses, config.diagnostics = ConfigDict(terms.to_dict()), True
    if set(terms) != {"cross_entropy"}:
        config.teachers = ConfigDict({"a": {"run": teacher}})
    return config


def _slug(label: str) -> str:
    return "".join(character if character.isalnum() or character in "._+-" else "_" for character in label)


def _student(study: ConfigDict, label: str, seed: int, result: dict, outputs, taught, rows: list) -> Student:
    to_transformed = np.mean(losses.ttm(outputs, taught, gamma=1 / study.temperature))
    scores = analysis.fidelity_scores(taught, outputs)
    seen = [row["a/kl_to_transformed"] for row in rows if "a/kl_to_transformed" in row]
    at_temperature = any(
        term.get("temperature") == study.temperature or term.get("gamma") == 1 / study.temperature
        for term in study.losses[label].values()
    )
    return Student(
        label,
        seed,
        result["last"]["test"]["accuracy"],
        scores["entropy_second"],
        float(to_transformed),
        tuple(row["student_entropy"] for row in rows),
        tuple(seen) if at_temperature else (),
    )

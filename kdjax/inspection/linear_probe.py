"""How far a network's features carry: a linear probe on another data set, its strength chosen on validation."""

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from kdjax.data import load_dataset
from kdjax.errors import UserError
from kdjax.inspection.predict import load_run, predict_run
from kdjax.store import Store

STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)  # inverse of the regularisation, scikit-learn's C


def probe(store: Store, run: str, data: Any, data_dir: str = "data") -> float:
    """Returns the test accuracy of multinomial logistic regression on a run's pooled features.

    Args:
      store: that has the run.
      run: its name.
      data: a config.data of another set, with a validation split; its images must have the size that the network takes.
      data_dir: where data sets that are not embedded lie.

    Raises:
      UserError: the set has no validation or test split, or its images do not fit the network.
    """
    _check_shape(store, run, data, data_dir)
    parts = {split: _features(store, run, data, data_dir, split) for split in ("train", "validation", "test")}
    mean, std = parts["train"][0].mean(axis=0), parts["train"][0].std(axis=0) + 1e-6
    scaled = {split: ((x - mean) / std, y) for split, (x, y) in parts.items()}
    fitted = [_fit(*scaled["train"], strength) for strength in STRENGTHS]
    chosen = max(fitted, key=lambda model: model.score(*scaled["validation"]))
    return float(chosen.score(*scaled["test"]))


def _check_shape(store: Store, run: str, data: Any, data_dir: str) -> None:
    own = load_run(store, run, data_dir=data_dir).dataset.input_shape
    other = load_dataset(data, data_dir).input_shape
    if own != other:
        a, b = ("x".join(map(str, shape)) for shape in (own, other))
        raise UserError(
            f"run '{run}' cannot see data set '{data.name}': it takes {a}, not {b}; set its size in the "
            "study's transfer."
        )


def _fit(x: np.ndarray, y: np.ndarray, strength: float) -> Any:
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits  # comes with scikit-learn

    with threadpool_limits(1):  # products this small are slower on several threads, far slower on a busy machine
        return LogisticRegression(C=strength, max_iter=2000).fit(x, y)


def _features(store: Store, run: str, data: Any, data_dir: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    outputs = predict_run(store, run, split, data_dir=data_dir, data=ConfigDict(data), features=True)
    if outputs.pooled is None:
        raise UserError(f"run '{run}' has no pooled vector; name one by config.model.pooled.")
    return outputs.pooled.astype(np.float64), outputs.labels

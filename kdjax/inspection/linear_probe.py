"""Linear probe: how well a network's features transfer to another data set."""

from typing import TYPE_CHECKING

import numpy as np
from ml_collections import ConfigDict

from kdjax.data import load_dataset
from kdjax.errors import UserError
from kdjax.inspection.predict import load_run, predict_run
from kdjax.store import Store

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)  # inverse strength of the L2 penalty, scikit-learn's C


def probe(store: Store, run: str, data: ConfigDict, data_dir: str = "data") -> float:
    """Returns the test accuracy of multinomial logistic regression on a run's standardised pooled features.

    The regularisation is the one of STRENGTHS with the best validation accuracy.

    Args:
      store: Store that holds the run.
      run: Name of the run.
      data: A config.data of another data set with a validation split, whose images have the network's input size.
      data_dir: Directory of the data sets that do not come with kdjax.

    Returns:
      The accuracy, in [0, 1].

    Raises:
      UserError: The data set has no validation or test split, or its images do not fit the network.
    """
    _check_shape(store, run, data, data_dir)
    features = {split: _features(store, run, data, data_dir, split) for split in ("train", "validation", "test")}
    mean, std = features["train"][0].mean(axis=0), features["train"][0].std(axis=0) + 1e-6
    scaled = {split: ((x - mean) / std, labels) for split, (x, labels) in features.items()}
    fitted = [_fit(*scaled["train"], strength) for strength in STRENGTHS]
    chosen = max(fitted, key=lambda model: model.score(*scaled["validation"]))
    return float(chosen.score(*scaled["test"]))


def _check_shape(store: Store, run: str, data: ConfigDict, data_dir: str) -> None:
    own = load_run(store, run, data_dir=data_dir).dataset.input_shape
    other = load_dataset(data, data_dir).input_shape
    if own != other:
        a, b = ("x".join(map(str, shape)) for shape in (own, other))
        raise UserError(
            f"run '{run}' cannot take the images of data set '{data.name}': they are {b}, not {a}; set the data set's "
            "size in config.transfer."
        )


def _fit(x: np.ndarray, y: np.ndarray, strength: float) -> "LogisticRegression":
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits  # comes with scikit-learn

    with threadpool_limits(1):  # matrix products this small are slower on several threads
        return LogisticRegression(C=strength, max_iter=2000).fit(x, y)


def _features(store: Store, run: str, data: ConfigDict, data_dir: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pooled features [examples, dim] and the labels [examples] of a split."""
    outputs = predict_run(store, run, split, data_dir=data_dir, data=ConfigDict(data), features=True)
    if outputs.pooled is None:
        raise UserError(f"run '{run}' has no pooled vector; name one with config.model.pooled.")
    return outputs.pooled.astype(np.float64), outputs.labels

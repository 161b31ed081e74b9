"""What an augmentation does to a network, and a network to its training set: affinity, diversity, over-fitting gap.

Numbers in, numbers out; accuracies are fractions, never per cent. Arrays are taken element by element, such as one
number a seed.
"""

from typing import Any

import numpy as np

from kdjax.analysis._checks import show


def augmentation_affinity(accuracy_augmented: Any, accuracy_clean: Any) -> Any:
    """Affinity of an augmentation, A(m, augmented validation) / A(m, clean validation) (Gontijo-Lopes et al., 2020).

    m is a model trained on clean data, without the augmentation, the same in both: the shift of the data it sees.

    Args:
      accuracy_augmented: of m on the validation set, every example augmented once; in [0, 1].
      accuracy_clean: of m on the validation set as it is; in (0, 1].

    Returns:
      At least 0; 1 for no shift, below 1 for one that hurts.

    Raises:
      ValueError: out of range, or shapes that differ.
    """
    return _ratio(_accuracies(accuracy_augmented=accuracy_augmented, accuracy_clean=accuracy_clean), "accuracy_clean")


def reference_code_affinity(accuracy_augmented: Any, accuracy_base: Any) -> Any:
    """Affinity as the multi-teacher paper's released code has it: the same ratio, of other accuracies.

    Its model need not be trained on clean data, and its denominator is the validation set under the `base` transform,
    the random crop of training without the flip. Compare only with numbers made alike.

    Args:
      accuracy_augmented: of a model on the validation set under the augmentation, in [0, 1].
      accuracy_base: of the same model on the validation set under `base`, in (0, 1].

    Returns:
      At least 0.

    Raises:
      ValueError: out of range, or shapes that differ.
    """
    return _ratio(_accuracies(accuracy_augmented=accuracy_augmented, accuracy_base=accuracy_base), "accuracy_base")


def augmentation_diversity(loss_augmented: Any, loss_clean: Any) -> Any:
    """Diversity of an augmentation, final training loss with it / without it (Gontijo-Lopes et al., 2020).

    Args:
      loss_augmented: final mean training loss of a model trained with the augmentation, on augmented examples; at
        least 0.
      loss_clean: the same of a model trained without it, on clean examples; above 0.

    Returns:
      At least 0; above 1 for an augmentation that makes the training set harder to fit.

    Raises:
      ValueError: out of range, or shapes that differ.
    """
    losses = _numbers(loss_augmented=loss_augmented, loss_clean=loss_clean)
    for name, value in losses.items():
        _refuse(name, value, ~((value >= 0) & np.isfinite(value)), "finite and at least 0")
    return _ratio(losses, "loss_clean")


def overfit_gap(train_accuracy: Any, validation_accuracy: Any) -> Any:
    """Training accuracy less validation accuracy.

    Args:
      train_accuracy: in [0, 1].
      validation_accuracy: in [0, 1]; the best of the run in the multi-teacher paper.

    Returns:
      In [-1, 1].

    Raises:
      ValueError: out of range, or shapes that differ.
    """
    train, validation = _accuracies(train_accuracy=train_accuracy, validation_accuracy=validation_accuracy).values()
    return _plain(train - validation)


def _numbers(**values: Any) -> dict[str, np.ndarray]:
    arrays = {name: np.asarray(value, np.float64) for name, value in values.items()}
    if len({array.shape for array in arrays.values()}) > 1:
        raise ValueError(" and ".join(f"{name} {show(array)}" for name, array in arrays.items()) + " differ in shape.")
    return arrays


def _accuracies(**values: Any) -> dict[str, np.ndarray]:
    arrays = _numbers(**values)
    for name, value in arrays.items():
        _refuse(name, value, ~((value >= 0) & (value <= 1)), "a fraction in [0, 1]")
    return arrays


def _ratio(values: dict[str, np.ndarray], below: str) -> Any:
    """Returns the first over the second, whose name is `below`."""
    top, bottom = values.values()
    _refuse(below, bottom, bottom == 0, "above 0")
    return _plain(top / bottom)


def _refuse(name: str, value: np.ndarray, wrong: np.ndarray, words: str) -> None:
    if np.any(wrong):
        raise ValueError(f"{name} must be {words}, not {float(value[wrong].flat[0]):g}.")


def _plain(value: Any) -> Any:
    return float(value) if np.ndim(value) == 0 else value

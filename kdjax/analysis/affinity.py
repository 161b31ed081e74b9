"""Measures of an augmentation and of over-fitting: affinity, diversity, and the gap between two accuracies.

All functions take and return numbers, or arrays of numbers elementwise, such as one number a seed. Accuracies are
fractions in [0, 1], never per cent.
"""

import numpy as np
from numpy.typing import ArrayLike

from kdjax.analysis._checks import show

Numbers = float | np.ndarray  # a float for scalar arguments, an array for arrays


def augmentation_affinity(accuracy_augmented: ArrayLike, accuracy_clean: ArrayLike) -> Numbers:
    """Returns an augmentation's affinity, a model's accuracy on augmented validation data over that on clean data.

    The model is one and the same, trained on clean data without the augmentation. Its affinity measures how far the
    augmentation shifts the data from what the model has learned.

    Args:
      accuracy_augmented: Accuracy on the validation set with every example augmented once, in [0, 1].
      accuracy_clean: Accuracy on the validation set without augmentation, in (0, 1].

    Returns:
      Affinity, at least 0: 1 if the augmentation does not change the accuracy, below 1 if it lowers it.

    Raises:
      ValueError: An accuracy is out of range, or the shapes differ.

    References:
      Gontijo-Lopes, Smullin, Cubuk & Dyer, 2020, "Affinity and Diversity: Quantifying Mechanisms of Data Augmentation",
      https://arxiv.org/abs/2002.08973
    """
    return _ratio(_accuracies(accuracy_augmented=accuracy_augmented, accuracy_clean=accuracy_clean), "accuracy_clean")


def reference_code_affinity(accuracy_augmented: ArrayLike, accuracy_base: ArrayLike) -> Numbers:
    """Returns the affinity that the code of Guo et al. (2024) prints, the same ratio of two other accuracies.

    In that code the model need not be trained on clean data, and the denominator is the accuracy under the transform
    `base`, the random crop of the training set without its flip. Compare it only with numbers from the same code.

    Args:
      accuracy_augmented: Accuracy on the validation set under the augmentation, in [0, 1].
      accuracy_base: Accuracy of the same model on the validation set under `base`, in (0, 1].

    Returns:
      Affinity, at least 0.

    Raises:
      ValueError: An accuracy is out of range, or the shapes differ.

    References:
      Guo, Zhong, Liu, Feng & Ma, 2024, "Why Does Knowledge Distillation Work? Rethink Its Attention and Fidelity
      Mechanism", https://arxiv.org/abs/2405.00739
    """
    return _ratio(_accuracies(accuracy_augmented=accuracy_augmented, accuracy_base=accuracy_base), "accuracy_base")


def augmentation_diversity(loss_augmented: ArrayLike, loss_clean: ArrayLike) -> Numbers:
    """Returns an augmentation's diversity, the final training loss with it over the final training loss without it.

    Args:
      loss_augmented: Final mean training loss of a model trained with the augmentation, on augmented examples, at
        least 0.
      loss_clean: Final mean training loss of a model trained without the augmentation, on clean examples, above 0.

    Returns:
      Diversity, at least 0: above 1 if the augmentation makes the training set harder to fit.

    Raises:
      ValueError: A loss is out of range, or the shapes differ.

    References:
      Gontijo-Lopes, Smullin, Cubuk & Dyer, 2020, "Affinity and Diversity: Quantifying Mechanisms of Data Augmentation",
      https://arxiv.org/abs/2002.08973
    """
    losses = _numbers(loss_augmented=loss_augmented, loss_clean=loss_clean)
    for name, value in losses.items():
        _refuse(name, value, ~((value >= 0) & np.isfinite(value)), "finite and at least 0")
    return _ratio(losses, "loss_clean")


def overfit_gap(train_accuracy: ArrayLike, validation_accuracy: ArrayLike) -> Numbers:
    """Returns the training accuracy minus the validation accuracy.

    Args:
      train_accuracy: Training accuracy, in [0, 1].
      validation_accuracy: Validation accuracy, in [0, 1]; Guo et al. (2024) take the run's best.

    Returns:
      Gap, in [-1, 1].

    Raises:
      ValueError: An accuracy is out of range, or the shapes differ.
    """
    train, validation = _accuracies(train_accuracy=train_accuracy, validation_accuracy=validation_accuracy).values()
    return _plain(train - validation)


def _numbers(**values: ArrayLike) -> dict[str, np.ndarray]:
    """Returns the arguments as float64 arrays of one shape."""
    arrays = {name: np.asarray(value, np.float64) for name, value in values.items()}
    if len({array.shape for array in arrays.values()}) > 1:
        raise ValueError(" and ".join(f"{name} {show(array)}" for name, array in arrays.items()) + " differ in shape.")
    return arrays


def _accuracies(**values: ArrayLike) -> dict[str, np.ndarray]:
    """Returns the arguments as float64 arrays of one shape, all in [0, 1]."""
    arrays = _numbers(**values)
    for name, value in arrays.items():
        _refuse(name, value, ~((value >= 0) & (value <= 1)), "a fraction in [0, 1]")
    return arrays


def _ratio(values: dict[str, np.ndarray], denominator: str) -> Numbers:
    """Returns the first value over the second, whose name is `denominator`."""
    top, bottom = values.values()
    _refuse(denominator, bottom, bottom == 0, "above 0")
    return _plain(top / bottom)


def _refuse(name: str, value: np.ndarray, wrong: np.ndarray, words: str) -> None:
    if np.any(wrong):
        raise ValueError(f"{name} must be {words}, not {float(value[wrong].flat[0]):g}.")


def _plain(value: np.ndarray) -> Numbers:
    return float(value) if np.ndim(value) == 0 else value

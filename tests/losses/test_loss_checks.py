"""The table RANGES of allowed hyper-parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses

INSIDE = {
    "temperature": (0.1, 4, 4.0, np.float64(3), jnp.float32(2)), "gamma": (0.1, 1, 2.5), "order": (0.25, 1, 1.0, 7),
    "eta": (0, 0.6, 1), "label_smoothing": (0, 0.0, 0.999), "num_top": (2, 5, np.int64(3)),
    "space": ("probs", "logits"), "reduction": ("class_sum", "class_mean"), "normalize": ("none", "batch_mean"),
    "exponent": (0.5, 2, 3.0), "p1": (1, 2.0), "p2": (1, 2.0), "margin": (0.1, 1), "k": (1, 4, np.int64(2)),
    "chunk": (1, 1024),
    "q": (0, 0.7, 1.0), "floor": (0, 0.01), "teacher_smoothing": (0.0, 1), "momentum": (0, 0.9999, 1.0),
    "average": ("mean", "released"), "direction": ("to_branch", "to_teacher"),
    "skew": (0, 0.1, 1), "mode": ("tail", "renormalize", "zero"), "jensen_shannon.beta": (0, 0.5, 1.0),
    "alpha_beta.alpha": (0, 0.8, -2.0), "alpha_beta.beta": (0, 0.3, -2.0),
    "vitkd.masked": (0.5, 0.1),
    "contrast_temperature": (0.5, 1), "keep_transformed": (0, 1), "keep_contrast": (0, 0.75),
    "ctkd.low": (1, 0.5), "ctkd.span": (20, 1.0), "ctkd.epochs": (10, 1),
    "size": (1, 4), "levels": (1, 2, 3),
    "scale": (0.5, 2), "label_temperature": (1, 2.0), "teacher_temperature": (1, 4.0),
    "share": (0, 0.1), "copies": (1, 3),
    "sharpness": (1, 2.0), "regularization": (0.05, 1), "iterations": (1, 10), "images": (1, 100),
}  # fmt: skip
OUTSIDE = {
    "temperature": (0, -1.0, float("nan"), float("inf"), "4", None, True, np.ones(2)),
    "gamma": (0.0, -0.1, "soft"), "order": (0, -2.0, float("inf")), "eta": (-0.01, 1.01, "0.5"),
    "label_smoothing": (-0.1, 1, 1.0), "num_top": (1, 0, 5.0, True, "5"),
    "space": ("prob", 1, None), "reduction": ("sum", "mean"), "normalize": ("batch", True, np.ones(2)),
    "exponent": (0, -1.0), "p1": (0.0, "2"), "p2": (-1, None), "margin": (0, float("inf")), "k": (0, 1.0, True),
    "chunk": (0, 1.5),
    "q": (-0.1, 1.5), "floor": (-0.1, 1.0), "teacher_smoothing": (-0.1, 2), "momentum": (-0.1, 1.1, "0.9"),
    "average": ("sum", None), "direction": ("to_student", True),
    "skew": (-0.1, 1.1), "mode": ("top", None), "jensen_shannon.beta": (-0.1, 1.1, "0.5"),
    "alpha_beta.alpha": (float("inf"), float("nan"), None), "alpha_beta.beta": (float("-inf"), True),
    "vitkd.masked": (0, 1.0, "half"),
    "contrast_temperature": (0, None), "keep_transformed": (-0.1, 2), "keep_contrast": (1.1, "1"),
    "ctkd.low": (0, -1), "ctkd.span": (0.0, "20"), "ctkd.epochs": (0, None),
    "size": (0, 2.0, True), "levels": (0, 4, 2.0),
    "scale": (0, "2"), "label_temperature": (0.0, None), "teacher_temperature": (0, "4"),
    "share": (-0.1, 1.1), "copies": (0, 1.5),
    "sharpness": (0, "1"), "regularization": (0.0, -1), "iterations": (0, 2.5), "images": (0, True),
}  # fmt: skip


def test_every_range_is_tested():
    assert set(INSIDE) == set(OUTSIDE) == set(losses.RANGES)


@pytest.mark.parametrize("name", INSIDE)
def test_inside_passes(name):
    for value in INSIDE[name]:
        losses.check_range(name, value)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, row in OUTSIDE.items() for value in row])
def test_outside_is_refused_in_words(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be ") as raised:
        losses.check_range(name, value)
    assert losses.RANGES[name][1] in str(raised.value)


def test_a_range_may_be_one_losss_alone():
    losses.check_range("beta", 8.0, "dkd")
    with pytest.raises(ValueError, match=r"^beta must be in \[0, 1\]"):
        losses.check_range("beta", 8.0, "jensen_shannon")


def test_hyper_parameters_that_do_not_go_together_are_refused():
    losses.check_combination("alpha_beta", {"alpha": -1.0, "beta": 1.0})
    losses.check_combination("kd", {"temperature": 4.0})
    with pytest.raises(ValueError, match="the hyper-parameters of 'alpha_beta' must be other than"):
        losses.check_combination("alpha_beta", {"alpha": 1.0, "beta": -1.0})


def test_unknown_names_and_traced_values_pass():
    losses.check_range("my_own", -1)
    jax.jit(lambda value: losses.check_range("temperature", value))(-1.0)


def test_public_names():
    assert set(losses.LOSSES) <= set(losses.__all__)
    for name, function in losses.LOSSES.items():
        assert getattr(losses, name) is function and function.__name__ == name

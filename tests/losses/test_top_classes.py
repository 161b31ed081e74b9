"""Teachers of which the top classes alone are known: every mode against its definition in NumPy."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import numpy_losses
import pytest

from kdjax import losses
from kdjax.losses._pairs import MODES
from kdjax.types import TopK

BATCH, CLASSES, K = 4, 7, 3
STUDENT, TEACHER = 2 * np.random.default_rng(0).normal(size=(2, BATCH, CLASSES))
P, Q = numpy_losses.softmax(TEACHER), numpy_losses.softmax(STUDENT)
ORDER = np.argsort(-TEACHER, axis=-1)
every_mode = pytest.mark.parametrize(("name", "mode"), [(name, mode) for name in MODES for mode in MODES[name]])


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def top(k):
    return TopK(ORDER[:, :k], np.take_along_axis(np.log(P), ORDER[:, :k], axis=-1))


def loss(name, teacher, **options):
    number = {"gamma": 0.4} if name.endswith("ttm") else {"temperature": 1.0}
    return lambda student: losses.LOSSES[name](student, teacher, **number, **options)


def sides(mode):
    """Returns the logarithms of the distributions that a mode compares, with 1e-300 for a probability of 0."""
    p, q = (np.take_along_axis(x, ORDER[:, :K], axis=-1) for x in (P, Q))
    if mode == "renormalize":
        p, q = (x / x.sum(-1, keepdims=True) for x in (p, q))
    elif mode == "tail":
        p, q = (np.concatenate([x, 1 - x.sum(-1, keepdims=True)], axis=-1) for x in (p, q))
    else:
        p = np.concatenate([p / p.sum(-1, keepdims=True), np.full((BATCH, CLASSES - K), 1e-300)], axis=-1)
        q = np.take_along_axis(Q, ORDER, axis=-1)
    return np.log(q), np.log(p)


@every_mode
def test_is_the_loss_of_what_its_mode_compares(name, mode):
    number = {"gamma": 0.4} if name.endswith("ttm") else {"temperature": 1.0}
    expected = getattr(numpy_losses, name)(*sides(mode), **number)
    np.testing.assert_allclose(loss(name, top(K), mode=mode)(STUDENT), expected, rtol=1e-9)


@every_mode
def test_all_classes_give_the_dense_value_and_gradient(name, mode):
    whole, dense = (jax.value_and_grad(lambda s, f=f: f(s).sum())(STUDENT) for f in (
        loss(name, top(CLASSES), mode=mode), loss(name, TEACHER)))  # fmt: skip
    np.testing.assert_allclose(whole[0], dense[0], rtol=1e-12)
    np.testing.assert_allclose(whole[1], dense[1], atol=1e-13)


@pytest.mark.parametrize("mode", ["renormalize", "zero"])
def test_temperature(mode):
    logits = [2.0 * x for x in (STUDENT, TEACHER)]
    p = numpy_losses.softmax(logits[1])
    teacher = TopK(ORDER[:, :K], np.take_along_axis(np.log(p), ORDER[:, :K], axis=-1))
    half = losses.forward_kl(logits[0], teacher, temperature=2.0, mode=mode)
    np.testing.assert_allclose(half, loss("forward_kl", top(K), mode=mode)(STUDENT), rtol=1e-12)


def test_the_tail_is_a_lower_bound_and_grows():
    dense = losses.forward_kl(STUDENT, TEACHER)
    values = [loss("forward_kl", top(k))(STUDENT) for k in range(1, CLASSES + 1)]
    assert (np.diff(values, axis=0) >= -1e-12).all() and (values[-1] <= dense + 1e-12).all()


def test_any_leading_axes_and_compiled():
    tokens = jax.tree.map(lambda x: x.reshape(2, 2, -1), top(K))
    found = jax.jit(losses.forward_kl)(STUDENT.reshape(2, 2, -1), tokens)
    np.testing.assert_allclose(found.reshape(-1), loss("forward_kl", top(K))(STUDENT), rtol=1e-12)


TAKE_A_TEACHER = [name for name, f in losses.LOSSES.items() if "teacher_logits" in inspect.signature(f).parameters]


@pytest.mark.parametrize("name", TAKE_A_TEACHER)
def test_every_loss_says_which_modes_it_takes_or_that_it_takes_none(name):
    """In one line that begins with the name of the loss, for each of the modes that it does not take."""
    takes = inspect.signature(losses.LOSSES[name]).parameters
    others = {"student_logits": STUDENT, "labels": np.zeros(BATCH, int), "gamma": 0.4, "stage_logits": ()}
    others |= {"crossed_logits": STUDENT, "learned_temperature": 2.0, "noise": np.zeros((BATCH, 2, CLASSES))}
    others |= dict.fromkeys(("student_strong_logits", "teacher_strong_logits"), STUDENT)
    others |= dict.fromkeys(("class_outputs", "class_costs"), np.ones((CLASSES, CLASSES)))
    others |= dict.fromkeys(("student_features", "teacher_features"), np.zeros((BATCH, 2, 2, 3)))
    others = {key: value for key, value in others.items() if key in takes}
    assert ("mode" in takes) == (name in MODES)
    for mode in {"tail", "renormalize", "zero"} - set(MODES.get(name, ())):
        option = {"mode": mode} if name in MODES else {}
        with pytest.raises(ValueError, match=f"^'?{name}'? (needs every class|takes a top-k teacher in)") as raised:
            losses.LOSSES[name](teacher_logits=top(K), **others, **option)
        assert "\n" not in str(raised.value)
    for mode in MODES.get(name, ()):
        assert f"'{mode}'" in inspect.getdoc(losses.LOSSES[name])


def test_what_does_not_fit_is_refused_by_name():
    with pytest.raises(ValueError, match="dkd needs every class of the teacher"):
        losses.dkd(STUDENT, top(K), np.zeros(BATCH, int))
    with pytest.raises(
        ValueError, match="'reverse_kl' takes a top-k teacher in the modes tail, renormalize, not 'zero'"
    ):
        losses.reverse_kl(STUDENT, top(K), mode="zero")
    with pytest.raises(ValueError, match="mode 'tail' needs temperature 1, not 4.0"):
        losses.kd(STUDENT, top(K))
    with pytest.raises(
        ValueError, match=r"indices \[4, 3\] and log_probs \[4, 2\] does not fit student_logits \[4, 7\]"
    ):
        losses.forward_kl(STUDENT, TopK(top(3).indices, top(2).log_probs))
    traced = jax.jit(lambda t: losses.forward_kl(jnp.asarray(STUDENT), top(K), temperature=t))
    assert np.isnan(traced(2.0)).all() and np.isfinite(traced(1.0)).all()

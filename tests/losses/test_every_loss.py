"""Properties of every loss on logits that has a formula in numpy_losses.py; a new loss is covered by adding one there.

The losses on maps, embeddings and memories are in test_maps.py.
"""

import functools
import inspect
import re

import chex
import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import numpy_losses
import pytest

from kdjax import losses
from kdjax.losses import RANGES

BATCH, CLASSES = 6, 7
LOSSES = {name: loss for name, loss in losses.LOSSES.items() if hasattr(numpy_losses, name)}
INPUTS = ("logits", "student_logits", "teacher_logits", "labels", "where", "axis_name")
REQUIRED = {"gamma": 0.3, "order": 0.25}  # values for hyper-parameters without a default
# Values of hyper-parameters to test besides the defaults.
VARIANTS = {
    "cross_entropy": [{"label_smoothing": 0.1}],
    "softmax_mse": [{"space": "logits"}, {"reduction": "class_mean"}],
    "tolerant": [{"num_top": 2, "eta": 0.0}, {"num_top": CLASSES, "eta": 1.0}],
    "top_score_difference": [{"num_top": 2}, {"num_top": CLASSES}],
    "kd": [{"temperature": 1.0}, {"temperature": 0.5}],
    "ttm": [{"gamma": 1.0}, {"gamma": 2.0}],
    "wttm": [{"gamma": 0.1}, {"gamma": 0.5, "normalize": "batch_mean"}],
    "student_renyi": [{"order": 1.0}, {"order": 3.0}],
    "gce": [{"q": 0.0}, {"q": 1.0}],
    "corrected_kd": [{"temperature": 1.0, "floor": 0.2}, {"floor": 0.0, "teacher_smoothing": 0.1}],
    "jensen_shannon": [{"beta": 0.1}, {"beta": 0.9, "scaled": True, "temperature": 2.0}],
    "alpha_beta": [{"alpha": 0.0, "beta": 0.5}],
}
CASES = [(name, hyper) for name in LOSSES for hyper in [{}, *VARIANTS.get(name, [])]]
every_loss = pytest.mark.parametrize("name", LOSSES)
READS_LABELS = [name for name, function in LOSSES.items() if "labels" in inspect.signature(function).parameters]
every_label_loss = pytest.mark.parametrize("name", READS_LABELS)
every_case = pytest.mark.parametrize(("name", "hyper"), CASES, ids=lambda value: str(value))


def parameters(name):
    return inspect.signature(LOSSES[name]).parameters


def arguments(name, labels="integer", seed=0):
    """Returns float64 inputs for the loss's own argument names."""
    rng = np.random.default_rng(seed)
    drawn = {key: 3 * rng.normal(size=(BATCH, CLASSES)) for key in ("logits", "student_logits", "teacher_logits")}
    soft = rng.dirichlet(np.ones(CLASSES), size=BATCH)
    drawn["labels"] = rng.integers(0, CLASSES, BATCH) if labels == "integer" else soft
    return {key: drawn[key] for key in parameters(name) if key in drawn}


def hyper_parameters(name, given=()):
    return {key: value for key, value in REQUIRED.items() if key in parameters(name)} | dict(given)


def logit_names(name):
    return [key for key in parameters(name) if key.endswith("logits")]


@functools.cache
def compiled(name, hyper):
    """Returns the loss and its gradient, compiled once for all tests."""
    loss = functools.partial(LOSSES[name], **dict(hyper))
    gradient = jax.grad(lambda logits, rest: loss(**logits, **rest).sum())
    return jax.jit(lambda inputs: loss(**inputs)), jax.jit(gradient)


def evaluate(name, inputs, hyper=(), dtype=jnp.float32):
    cast = {key: jnp.asarray(x, dtype if np.issubdtype(x.dtype, np.floating) else None) for key, x in inputs.items()}
    return compiled(name, tuple(hyper_parameters(name, hyper).items()))[0](cast)


def gradients(name, inputs, hyper=()):
    """Returns the gradients with respect to all logits, also the teacher's."""
    logits = {key: jnp.asarray(inputs[key], jnp.float32) for key in logit_names(name)}
    rest = {key: x for key, x in inputs.items() if key not in logits}
    return compiled(name, tuple(hyper_parameters(name, hyper).items()))[1](logits, rest)


@every_case
def test_is_its_formula(name, hyper):
    inputs, hyper = arguments(name), hyper_parameters(name, hyper)
    expected = getattr(numpy_losses, name)(**inputs, **hyper)
    value = evaluate(name, inputs, hyper)
    chex.assert_shape(value, (BATCH,))
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, expected, rtol=2e-5, atol=1e-6)
    with jax.enable_x64(True):
        value = evaluate(name, inputs, hyper, jnp.float64)
        assert value.dtype == jnp.float64
        np.testing.assert_allclose(value, expected, rtol=1e-11, atol=1e-13)


@every_case
def test_gradient_is_the_finite_difference(name, hyper):
    hyper = hyper_parameters(name, hyper)
    with jax.enable_x64(True):
        inputs = {key: jnp.asarray(x) for key, x in arguments(name, "soft").items()}
        rest = {key: x for key, x in inputs.items() if not key.endswith("logits")}

        def function(logits):
            return LOSSES[name](**logits, **rest, **hyper)

        logits = {key: inputs[key] for key in logit_names(name)}
        jax.test_util.check_grads(jax.jit(function), (logits,), order=1, modes=("rev",), atol=1e-6, rtol=1e-6)


@every_loss
def test_shift_of_logits_changes_nothing(name):
    inputs = arguments(name)
    shift = np.linspace(-40, 40, BATCH)[:, None]
    shifted = {key: x + shift if key in logit_names(name) else x for key, x in inputs.items()}
    np.testing.assert_allclose(evaluate(name, shifted), evaluate(name, inputs), rtol=1e-4, atol=1e-5)


@every_case
def test_names_of_classes_do_not_matter(name, hyper):
    inputs = arguments(name, "soft")
    order = np.random.default_rng(1).permutation(CLASSES)
    permuted = {key: x[:, order] for key, x in inputs.items()}
    np.testing.assert_allclose(evaluate(name, permuted, hyper), evaluate(name, inputs, hyper), rtol=1e-5, atol=1e-6)


@every_loss
def test_an_example_does_not_see_its_batch(name):
    inputs = arguments(name)
    alone = [evaluate(name, {key: x[i : i + 1] for key, x in inputs.items()}) for i in range(BATCH)]
    np.testing.assert_allclose(np.concatenate(alone), evaluate(name, inputs), rtol=1e-6, atol=1e-7)


@every_label_loss
def test_soft_labels_are_in_its_formula(name):
    inputs = arguments(name, "soft")
    expected = getattr(numpy_losses, name)(**inputs)
    np.testing.assert_allclose(evaluate(name, inputs), expected, rtol=2e-5)


@every_label_loss
def test_integer_labels_are_one_hot_labels(name):
    inputs = arguments(name)
    one_hot = inputs | {"labels": np.eye(CLASSES)[inputs["labels"]]}
    np.testing.assert_array_equal(evaluate(name, one_hot), evaluate(name, inputs))


@every_label_loss
def test_label_of_no_class_is_nan_and_can_be_masked(name):
    inputs = arguments(name)
    labels = inputs["labels"].copy()
    labels[[0, 1]] = [-1, CLASSES]
    value = evaluate(name, inputs | {"labels": labels})
    assert np.isnan(value[:2]).all() and np.isfinite(value[2:]).all()

    def masked(logits):
        values = LOSSES[name](**inputs | {"labels": labels, logit_names(name)[0]: logits})
        return jnp.where(labels >= 0, values, 0)[jnp.array([0, 2, 3])].sum()

    chex.assert_tree_all_finite(jax.grad(masked)(jnp.asarray(inputs[logit_names(name)[0]], jnp.float32)))


def extremes():
    """Returns rows of up to ±1e4: one-hot, all equal, ties, one low class, a ramp up and a ramp down."""
    rows = np.zeros((BATCH, CLASSES))
    rows[0, 0] = 1e4
    rows[1] = -1e4
    rows[2, :3], rows[2, 3:] = 1e4, -1e4
    rows[3, 5] = -1e4
    rows[4] = np.linspace(-1e4, 1e4, CLASSES)
    rows[5] = np.linspace(1e4, -1e4, CLASSES)
    return rows


@pytest.mark.parametrize("roll", [0, 1])
@every_case
def test_logits_of_any_size_give_finite_values_and_gradients(name, hyper, roll):
    inputs = arguments(name)
    for shift, key in enumerate(logit_names(name)):
        inputs[key] = np.roll(extremes(), roll * (shift + 1), axis=0)
    chex.assert_tree_all_finite(evaluate(name, inputs, hyper))
    chex.assert_tree_all_finite(gradients(name, inputs, hyper))


@every_loss
def test_a_class_that_is_masked_out_plays_no_part(name):
    inputs = arguments(name)
    if "labels" in inputs:
        inputs["labels"] = np.minimum(inputs["labels"], CLASSES - 2)
    masked = {key: np.where(np.arange(CLASSES) == CLASSES - 1, -np.inf, inputs[key]) for key in logit_names(name)}
    without = {key: x[:, :-1] for key, x in masked.items()}
    rest = {key: x for key, x in inputs.items() if key not in masked}
    np.testing.assert_allclose(evaluate(name, masked | rest), evaluate(name, without | rest), rtol=1e-5, atol=1e-6)
    chex.assert_tree_all_finite(gradients(name, masked | rest))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@every_loss
def test_half_precision_is_computed_in_float32(name, dtype):
    inputs = arguments(name)
    halves = {key: np.asarray(jnp.asarray(x, dtype), np.float32) for key, x in inputs.items() if x.ndim == 2}
    value = evaluate(name, inputs, dtype=dtype)
    assert value.dtype == jnp.float32
    np.testing.assert_array_equal(value, evaluate(name, inputs | halves))


@every_loss
def test_vmap_is_a_loop(name):
    stacked = [arguments(name, seed=seed) for seed in range(2)]
    batches = jax.tree.map(lambda *x: jnp.stack([jnp.asarray(part) for part in x]), *stacked)
    hyper = hyper_parameters(name)
    mapped = jax.jit(jax.vmap(lambda inputs: LOSSES[name](**inputs, **hyper)))(batches)
    looped = jnp.stack([evaluate(name, inputs) for inputs in stacked])
    np.testing.assert_allclose(mapped, looped, rtol=1e-6, atol=1e-6)


@every_loss
def test_eager_is_compiled(name):
    inputs, hyper = arguments(name), hyper_parameters(name)
    np.testing.assert_allclose(LOSSES[name](**inputs, **hyper), evaluate(name, inputs), rtol=1e-6, atol=1e-6)


@every_case
def test_floats_may_be_traced(name, hyper):
    inputs = arguments(name)
    defaults = {key: p.default for key, p in parameters(name).items() if p.annotation is float}
    floats = defaults | {k: v for k, v in hyper_parameters(name, hyper).items() if k in defaults}
    rest = {k: v for k, v in hyper_parameters(name, hyper).items() if k not in floats}
    traced = jax.jit(lambda floats: LOSSES[name](**inputs, **floats, **rest))(floats)
    np.testing.assert_allclose(traced, evaluate(name, inputs, hyper), rtol=1e-5, atol=1e-6)


@every_case
def test_leading_axes_are_one_long_batch(name, hyper):
    """Logits [batch, time, classes], [classes] and [0, classes] give values [batch, time], [] and [0]."""
    inputs, hyper = arguments(name), hyper_parameters(name, hyper)
    split = {key: x.reshape(2, 3, *x.shape[1:]) for key, x in inputs.items()}
    flat = evaluate(name, inputs, hyper)
    np.testing.assert_allclose(evaluate(name, split, hyper), flat.reshape(2, 3), rtol=1e-6, atol=1e-7)
    total = jax.tree.map(lambda x: x.reshape(BATCH, CLASSES), gradients(name, split, hyper))
    chex.assert_trees_all_close(total, gradients(name, inputs, hyper), rtol=1e-5, atol=1e-6)
    chex.assert_shape(LOSSES[name](**{key: x[0] for key, x in inputs.items()}, **hyper), ())
    chex.assert_shape(LOSSES[name](**{key: x[:0] for key, x in inputs.items()}, **hyper), (0,))


@every_loss
def test_scan_is_a_loop(name):
    stacked = {key: np.stack([x, x[::-1]]) for key, x in arguments(name).items()}
    hyper = hyper_parameters(name)
    scanned = jax.lax.scan(lambda _, inputs: (None, LOSSES[name](**inputs, **hyper)), None, stacked)[1]
    forth = evaluate(name, arguments(name))
    np.testing.assert_allclose(scanned, np.stack([forth, forth[::-1]]), rtol=1e-6, atol=1e-6)


@every_loss
def test_wrong_shapes_are_refused_with_the_shapes(name):
    inputs, hyper = arguments(name), hyper_parameters(name)
    for key, x in inputs.items():
        for wrong in [x[None], x[:-1], x[0]] if len(inputs) > 1 else [x[0, 0], x[:, :0]]:
            shape = re.escape(str(list(np.shape(wrong))))
            with pytest.raises(ValueError, match=shape):
                LOSSES[name](**(inputs | {key: wrong}), **hyper)


@every_loss
def test_out_of_range_is_refused_at_the_door(name):
    wrong = {float: float("nan"), int: 0, str: "neither"}
    for key, parameter in parameters(name).items():
        if key in RANGES or f"{name}.{key}" in RANGES:
            with pytest.raises(ValueError, match=f"{key} must be "):
                LOSSES[name](**arguments(name), **hyper_parameters(name, {key: wrong[parameter.annotation]}))


@every_loss
def test_signature_and_docstring(name):
    for key, parameter in parameters(name).items():
        if key not in (*INPUTS, "standardize", "scaled"):
            assert parameter.annotation in (float, int, str) and (key in RANGES or f"{name}.{key}" in RANGES), key
        assert (parameter.kind is parameter.KEYWORD_ONLY) == (key not in INPUTS[:4]), key
    doc = inspect.getdoc(LOSSES[name])
    assert doc.split("\n")[0].endswith((".", ":", ",")) and re.search(r"(19|20)\d\d", doc)
    for part in ("Args:", "Returns:", "Raises:", "[...]", "[..., classes]"):
        assert part in doc, part

"""Properties of all totals: batches add up to the set, a mask equals a slice, compiled equals eager."""

import functools

import jax
import numpy as np
import pytest

from kdjax import analysis

SIZE, CLASSES = 12, 5


def arguments():
    rng = np.random.default_rng(0)
    logits, other = 2 * rng.normal(size=(2, SIZE, CLASSES))
    regions = rng.random((3, SIZE, 4, 4)) > 0.6
    regions[:, 3] = False
    return {
        "logits": logits,
        "other": other,
        "labels": rng.integers(0, CLASSES, SIZE),
        "posterior": rng.dirichlet(np.ones(CLASSES), SIZE),
        "raters": rng.integers(2, 9, SIZE),
        "regions": regions.swapaxes(0, 1),
    }


def posterior_sums(mask, *, logits, posterior, raters):
    return analysis.posterior_sums(logits, posterior, mask, raters=raters)


def fidelity_sums(mask, *, logits, other):
    return analysis.fidelity_sums(logits, other, mask)


def fidelity_sums_by_class(mask, *, logits, other, labels):
    return analysis.fidelity_sums(logits, other, mask, labels)


def label_pairs(mask, *, logits, other):
    return analysis.label_pairs(logits, other, mask)


def reference_code_kl_sums(mask, *, logits, other):
    return analysis.reference_code_kl_sums(logits, other, mask)


def score_sums(mask, *, logits, labels):
    return analysis.score_sums(logits, labels, mask)


def reliability_sums(mask, *, logits, labels):
    return analysis.reliability_sums(logits, labels, mask)


def classwise_sums(mask, *, logits, labels):
    return analysis.classwise_sums(logits, labels, mask, bins=4)


def iou_sums(mask, *, regions):
    return analysis.iou_sums([regions[:, number] for number in range(regions.shape[1])], mask)


ADDED = [
    (posterior_sums, ("logits", "posterior", "raters")),
    (fidelity_sums, ("logits", "other")),
    (fidelity_sums_by_class, ("logits", "other", "labels")),
    (label_pairs, ("logits", "other")),
    (reference_code_kl_sums, ("logits", "other")),
    (score_sums, ("logits", "labels")),
    (reliability_sums, ("logits", "labels")),
    (classwise_sums, ("logits", "labels")),
    (iou_sums, ("regions",)),
]
every_sum = pytest.mark.parametrize(("function", "names"), ADDED, ids=lambda value: getattr(value, "__name__", ""))


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@functools.cache
def compiled(function):
    return jax.jit(lambda mask, inputs: function(mask, **inputs))


def given(names):
    return {name: value for name, value in arguments().items() if name in names}


def assert_same(found, expected, rtol=1e-12):
    """Asserts that counts are equal, and sums up to the order of additions."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        exact = np.issubdtype(np.asarray(other).dtype, np.integer)
        np.testing.assert_allclose(one, other, rtol=0 if exact else rtol, atol=0 if exact else rtol)


@every_sum
def test_batches_make_the_set(function, names):
    inputs = given(names)
    whole = function(None, **inputs)
    parts = [function(None, **{k: x[i : i + 4] for k, x in inputs.items()}) for i in range(0, SIZE, 4)]
    assert_same(analysis.add(*parts), whole)


@every_sum
def test_a_mask_is_a_slice_whatever_lies_under_it(function, names):
    inputs = given(names)
    mask = np.arange(SIZE) % 3 == 1
    sliced = function(None, **{k: x[mask] for k, x in inputs.items()})
    padded = {k: np.where(mask.reshape(-1, *[1] * (x.ndim - 1)), x, padding(x)) for k, x in inputs.items()}
    assert_same(function(mask, **padded), sliced)


def padding(x):
    return np.asarray(np.nan if x.dtype.kind == "f" else True if x.dtype == bool else -1, x.dtype)


@every_sum
def test_nothing_counted_is_nothing(function, names):
    totals = function(np.zeros(SIZE, bool), **given(names))
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(totals))


@every_sum
def test_compiled_is_eager_and_a_device_is_a_batch(function, names):
    inputs, mask = given(names), np.arange(SIZE) != 2
    eager = function(mask, **inputs)
    assert_same(compiled(function)(mask, inputs), eager)
    halves = {k: x.reshape(2, SIZE // 2, *x.shape[1:]) for k, x in inputs.items()}

    def body(mask, inputs):
        return jax.lax.psum(function(mask, **inputs), "devices")

    mapped = jax.vmap(body, axis_name="devices", out_axes=None)
    assert_same(jax.jit(mapped)(mask.reshape(2, -1), halves), eager)


@every_sum
def test_a_wrong_shape_is_refused_with_the_shape(function, names):
    with pytest.raises(ValueError, match=rf"\[{SIZE - 1}"):
        function(np.ones(SIZE - 1, bool), **given(names))
    for name in names:
        wrong = given(names) | {name: given(names)[name][: SIZE - 1]}
        if len(names) > 1:
            with pytest.raises(ValueError, match=rf"\[{SIZE - 1}"):
                function(None, **wrong)


@pytest.mark.parametrize("function", [fidelity_sums_by_class, score_sums, reliability_sums, classwise_sums])
def test_a_label_of_no_class_is_refused_or_left_out(function):
    names = dict(ADDED)[function]
    inputs = given(names)
    inputs["labels"][:2] = -1, CLASSES
    with pytest.raises(ValueError, match=f"label -1 is not one of the {CLASSES} classes"):
        function(None, **inputs)
    masked = function(np.arange(SIZE) > 1, **inputs)
    assert_same(compiled(function)(np.ones(SIZE, bool), inputs), masked)


@pytest.mark.parametrize("function", [posterior_sums, fidelity_sums, label_pairs, score_sums, classwise_sums])
def test_a_shift_of_the_logits_changes_nothing(function):
    inputs = given(dict(ADDED)[function])
    shift = np.linspace(-40, 40, SIZE)[:, None]
    shifted = {k: x + shift if k in ("logits", "other") else x for k, x in inputs.items()}
    assert_same(function(None, **shifted), function(None, **inputs), rtol=1e-11)


@every_sum
def test_parts_make_the_set_whatever_their_size(function, names, monkeypatch):
    inputs, mask = given(names), np.arange(SIZE) != 2
    whole = function(mask, **inputs)
    monkeypatch.setattr("kdjax.analysis.sums.PART", 5)
    sizes = []

    def measure(mask, *arrays):
        sizes.append(len(mask))
        return function(mask, **dict(zip(inputs, arrays, strict=True)))

    assert_same(analysis.in_parts(measure, mask, *inputs.values()), whole)
    assert max(sizes) == 5 and sum(sizes) == SIZE


def test_scores_of_whole_arrays_are_taken_in_parts_and_refuse_as_before(monkeypatch):
    logits, other, labels, posterior, raters = (
        given(("logits", "other", "labels", "posterior", "raters"))[name]
        for name in ("logits", "other", "labels", "posterior", "raters")
    )
    measures = {
        "posterior": lambda: analysis.posterior_scores(logits, posterior, raters=raters),
        "fidelity": lambda: analysis.fidelity_scores(logits, other, labels=labels),
        "calibration": lambda: analysis.calibration_scores(logits, labels),
    }
    whole = {name: measure() for name, measure in measures.items()}
    monkeypatch.setattr("kdjax.analysis.sums.PART", 5)
    for name, measure in measures.items():
        assert_same(measure(), whole[name])
    with pytest.raises(ValueError, match="labels"):
        analysis.calibration_scores(logits, labels[:5])


def test_add_keeps_counts_that_float32_would_lose():
    big = {"x": (np.float32(2**24), np.int32(2**31 - 1))}
    one = {"x": (np.float32(1), np.int32(1))}
    total, count = analysis.add(big, one)["x"]
    assert total == 2**24 + 1 and count == 2**31


def test_add_refuses_shapes_that_would_broadcast():
    with pytest.raises(ValueError, match=r"\[\[\], \[3\]\]"):
        analysis.add({"x": (0.0, 0)}, {"x": (np.zeros(3), np.zeros(3, int))})
    with pytest.raises(ValueError, match="one batch"):
        analysis.add()


def test_means_and_what_was_never_counted():
    totals = {"x": (np.array([3.0, 0.0]), np.array([2, 0])), "y": (1.0, 4)}
    np.testing.assert_equal(analysis.means(totals), {"x": np.array([1.5, np.nan]), "y": 0.25})
    assert analysis.means(analysis.overall(totals)) == {"x": 1.5, "y": 0.25}


def test_every_public_function_says_what_it_returns_and_refuses():
    for name in analysis.__all__:
        doc = getattr(analysis, name).__doc__
        assert doc and doc.split("\n")[0].rstrip().endswith((".", ":")), name
        assert "Returns" in doc or "Attributes" in doc or doc.startswith("Returns"), name

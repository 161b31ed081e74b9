"""Losses on maps, embeddings and memories, and decoupled losses: against NumPy, and properties of their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from kdjax import losses
from tests.losses import numpy_losses, numpy_maps

rng = np.random.default_rng(0)
BATCH = 5


def maps(*shapes):
    return tuple(rng.normal(size=(BATCH, *shape)) for shape in shapes)


# Different widths at every stage, and different sizes at one.
S3, T3 = maps((8, 8, 4), (6, 6, 5), (3, 3, 6)), maps((8, 8, 6), (4, 4, 7), (3, 3, 8))
SAME_S, SAME_T = (maps((8, 8, 4), (4, 4, 6), (2, 2, 8)) for _ in range(2))
EQUAL_S, EQUAL_T = (maps((8, 8, 6), (4, 4, 6), (4, 4, 6)) for _ in range(2))
VARIANCES = tuple(rng.uniform(0.5, 2, width) for width in (4, 6, 8))
MARGINS = tuple(-rng.uniform(0.1, 1, width) for width in (4, 6, 8))
VECTORS = tuple(rng.normal(size=(BATCH, 7)) for _ in range(3))
WIDER = rng.normal(size=(BATCH, 9))
SCORES = tuple(rng.normal(size=(BATCH, 12)) for _ in range(2))
LOGITS = tuple(2 * rng.normal(size=(BATCH, 6)) for _ in range(2))
LABELS = rng.integers(0, 6, BATCH)
TOKENS = tuple(rng.normal(size=(BATCH, 16, 3)) for _ in range(2))
MASKED = rng.random((BATCH, 4, 4)) < 0.5
HEADS = tuple(2 * rng.normal(size=(BATCH, 6)) for _ in range(3))
MEANS = rng.normal(size=(6, 7))
REGIONS = tuple(2 * rng.normal(size=(BATCH, 5, 6)) for _ in range(2))
BRANCHES = [tuple(rng.normal(size=(BATCH, 4, width)) for width in (24, 24, 6)) for _ in range(2)]

STRONG = tuple(2 * np.random.default_rng(10).normal(size=(2, BATCH, 6)))
OUTPUTS = np.random.default_rng(8).dirichlet(np.ones(6), 6)  # of each class
COSTS = np.random.default_rng(9).uniform(-0.1, 0.9, (6, 6))  # not symmetric, and below 0 in places
NOISE = np.random.default_rng(7).normal(size=(3, BATCH, 6))

# name -> (loss of the student's side alone, that side, its value by NumPy)
CASES = {
    "hint": (lambda s: losses.hint(s, SAME_T[1]), SAME_S[1], numpy_maps.hint(SAME_S[1], SAME_T[1])),
    "ickd": (lambda s: losses.ickd(s, EQUAL_T[0]), EQUAL_S[1], numpy_maps.ickd(EQUAL_S[1], EQUAL_T[0])),
    "srrl": (
        lambda s: losses.srrl(s[0], EQUAL_T[1], s[1], LOGITS[1], logit_weight=0.7), (EQUAL_S[0], LOGITS[0]),
        numpy_maps.srrl(EQUAL_S[0], EQUAL_T[1], *LOGITS, 0.7)),
    "simkd": (lambda s: losses.simkd(s, EQUAL_T[0]), EQUAL_S[1], numpy_maps.simkd(EQUAL_S[1], EQUAL_T[0])),
    "sdd": (
        lambda s: losses.sdd(s, REGIONS[1], LABELS, temperature=2.0), REGIONS[0],
        numpy_maps.sdd(*REGIONS, LABELS, 2.0)),
    "catkd": (lambda s: losses.catkd(s, EQUAL_T[1]), EQUAL_S[0], numpy_maps.catkd(EQUAL_S[0], EQUAL_T[1], 2)),
    "ctkd": (lambda s: losses.ctkd(s, LOGITS[1], 2.5), LOGITS[0], numpy_losses.kd(*LOGITS, temperature=2.5)),
    "nd": (
        lambda s: losses.nd(s, VECTORS[1], MEANS, LABELS), VECTORS[0],
        numpy_maps.nd(VECTORS[0], VECTORS[1], MEANS, LABELS)),
    "ofa": (
        lambda s: losses.ofa(s[0], s[1:], LOGITS[1], LABELS, exponent=1.5, stage_weight=0.3), HEADS,
        numpy_maps.ofa(HEADS, LOGITS[1], LABELS, 1.5, (1, 0.3, 0.3))),
    "vitkd": (
        lambda s: losses.vitkd(s[1:], TOKENS, s[0], SAME_T[1], MASKED, shallow_weight=0.1, deep_weight=0.2),
        (SAME_S[1], TOKENS[1], TOKENS[0]),
        numpy_maps.vitkd(TOKENS[::-1], TOKENS, SAME_S[1], SAME_T[1], MASKED, (0.1, 0.2))),
    "attention": (lambda s: losses.attention(s, T3), S3, numpy_maps.attention(S3, T3)),
    "nst": (lambda s: losses.nst(s, T3), S3, numpy_maps.nst(S3, T3)),
    "fsp": (lambda s: losses.fsp(s, EQUAL_T), EQUAL_S, numpy_maps.fsp(EQUAL_S, EQUAL_T)),
    "factor_transfer": (
        lambda s: losses.factor_transfer(s, T3[1]), S3[1], numpy_maps.factor_transfer(S3[1], T3[1])),
    "paraphrase": (lambda s: losses.paraphrase(s, SAME_T[1]), SAME_S[1], numpy_maps.hint(SAME_S[1], SAME_T[1])),
    "activation_boundary": (
        lambda s: losses.activation_boundary(s, SAME_T), SAME_S, numpy_maps.activation_boundary(SAME_S, SAME_T)),
    "vid": (lambda s: losses.vid(s, SAME_T, VARIANCES), SAME_S, numpy_maps.vid(SAME_S, SAME_T, VARIANCES)),
    "review": (lambda s: losses.review(s, SAME_T), SAME_S, numpy_maps.review(SAME_S, SAME_T)),
    "ofd": (lambda s: losses.ofd(s, SAME_T, MARGINS), SAME_S, numpy_maps.ofd(SAME_S, SAME_T, MARGINS)),
    "svd": (lambda s: losses.svd(s, EQUAL_T), EQUAL_S, None),
    "similarity": (lambda s: losses.similarity(s, T3[2]), S3[2], numpy_maps.similarity(S3[2], T3[2])),
    "correlation": (
        lambda s: losses.correlation(s, VECTORS[1]), VECTORS[0], numpy_maps.correlation(VECTORS[0], VECTORS[1])),
    "rkd": (lambda s: losses.rkd(s, WIDER), VECTORS[0], numpy_maps.rkd(VECTORS[0], WIDER)),
    "pkt": (lambda s: losses.pkt(s, WIDER), VECTORS[0], numpy_maps.pkt(VECTORS[0], WIDER)),
    "itrd": (
        lambda s: losses.itrd(s, VECTORS[1], VECTORS[2], alpha=1.5), VECTORS[0],
        numpy_maps.itrd(VECTORS[0], VECTORS[1], VECTORS[2], 1.5)),
    "crd": (
        lambda s: losses.crd(s, SCORES[1], (3.0, 5.0), examples=40), SCORES[0],
        numpy_maps.crd(SCORES[0], SCORES[1], (3.0, 5.0), 40)),
    "dkd": (
        lambda s: losses.dkd(s, LOGITS[1], LABELS, alpha=0.7, beta=3.0, temperature=2.0), LOGITS[0],
        numpy_maps.dkd(LOGITS[0], LOGITS[1], LABELS, 0.7, 3.0, 2.0)),
    "nkd": (
        lambda s: losses.nkd(s, LOGITS[1], LABELS, gamma=1.2, temperature=2.0), LOGITS[0],
        numpy_maps.nkd(LOGITS[0], LOGITS[1], LABELS, 1.2, 2.0)),
    "hsakd": (
        lambda s: losses.hsakd(s, BRANCHES[1], temperature=2.0), BRANCHES[0], numpy_maps.hsakd(*BRANCHES, 2.0)),
    "auxiliary_cross_entropy": (
        lambda s: losses.auxiliary_cross_entropy(s, LABELS), BRANCHES[0][:2],
        numpy_maps.auxiliary_cross_entropy(BRANCHES[0][:2], LABELS)),
    "gkl": (
        lambda s: losses.gkl(s, LOGITS[1], alpha=0.5, beta=3.0, gamma=0.3, temperature=2.0, teacher_temperature=3.0),
        LOGITS[0], numpy_maps.gkl(LOGITS[0], LOGITS[1], 0.5, 3.0, 0.3, 2.0, 3.0)),
    "class_gkl": (
        lambda s: losses.class_gkl(s, LOGITS[1], OUTPUTS, LABELS, alpha=0.5, beta=3.0, gamma=0.3, temperature=2.0),
        LOGITS[0], numpy_maps.class_gkl(*LOGITS, OUTPUTS, LABELS, 0.5, 3.0, 0.3, 2.0)),
    "wkdl": (
        lambda s: losses.wkdl(s, LOGITS[1], COSTS, LABELS, gamma=3.0, label_weight=0.5, temperature=2.0), LOGITS[0],
        numpy_maps.wkdl(*LOGITS, COSTS, LABELS, 3.0, 0.5, 2.0)),
    "label_term": (
        lambda s: losses.label_term(s, LOGITS[1], LABELS), LOGITS[0],
        numpy_maps.wkdl(*LOGITS, COSTS, LABELS, 0.0, 1.0, 1.0)),
    "mlkd": (
        lambda s: losses.mlkd(s[0], LOGITS[1], s[1], STRONG[1], temperature=2.5), (LOGITS[0], STRONG[0]),
        numpy_maps.mlkd(*LOGITS, *STRONG, 2.5)),
    "tekap": (
        lambda s: losses.tekap(s, LOGITS[1], np.stack(NOISE, 1), share=0.2, noisy_weight=0.7, temperature=2.0),
        LOGITS[0],
        numpy_losses.kd(*LOGITS, temperature=2.0)
        + 0.7 * sum(numpy_losses.kd(LOGITS[0], 0.8 * LOGITS[1] + 0.2 * z, temperature=2.0) for z in NOISE)),
    "dist": (lambda s: losses.dist(s, LOGITS[1], temperature=2.0), LOGITS[0],
        numpy_maps.dist(LOGITS[0], LOGITS[1], 2.0)),
}  # fmt: skip
ELSEWHERE = {"cross_entropy", "softmax_mse", "tolerant", "top_score_difference", "confidence_penalty", "student_renyi"}
ELSEWHERE |= {"kd", "ttm", "wttm", "gce", "corrected_kd", *losses.DIVERGENCES}
ELSEWHERE |= {"mcmi", "consistency", "lipschitz", "student_branches"}  # in test_teaching.py
ELSEWHERE |= {"sskd", "view_cross_entropy"}  # in test_views.py
ELSEWHERE |= {"wsl", "normkd", "rld"}  # in test_refined.py


@pytest.fixture(autouse=True, scope="module")
def exact():
    with jax.enable_x64(True):
        yield


def test_no_loss_is_forgotten():
    assert set(CASES) | ELSEWHERE == set(losses.LOSSES)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case[2] is not None])
def test_equals_numpy(name):
    loss, student, expected = CASES[name]
    value = np.asarray(jax.jit(loss)(student))
    assert value.shape == np.shape(expected) and value.dtype == np.float64
    np.testing.assert_allclose(value, expected, rtol=1e-6 if name == "dist" else 1e-10)


def test_svd_equals_numpy_under_one_sign_of_the_vectors():
    """The kernel of two stages depends on the signs of their vectors, so one map is used twice, which has one sign."""
    student, teacher = (EQUAL_S[0], EQUAL_S[0]), (EQUAL_T[0], EQUAL_T[0])
    np.testing.assert_allclose(jax.jit(losses.svd)(student, teacher), numpy_maps.svd(student, teacher), rtol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_finite_differences(name):
    loss, student, _ = CASES[name]
    weights = np.random.default_rng(1).uniform(
        0.5, 1.5, BATCH
    )  # so that the examples of a loss [batch] count differently
    total = jax.jit(lambda s: jnp.sum(loss(s) * weights[: np.size(loss(s))]))
    check_grads(total, (student,), 1, ["rev"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_constant_features_have_finite_values_and_gradients(name):
    loss, student, _ = CASES[name]
    value_and_gradient = jax.jit(jax.value_and_grad(lambda s: jnp.sum(loss(s))))
    for value in (0.0, -1e4):
        flat = jax.tree.map(lambda leaf: jnp.full_like(leaf, value, dtype=jnp.float32), student)
        result, gradient = value_and_gradient(flat)
        assert np.isfinite(result), value
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient)), value


AT_EQUALITY = {
    "hint": lambda: losses.hint(SAME_T[0], SAME_T[0]),
    "ickd": lambda: losses.ickd(T3[0], T3[0]),
    "srrl": lambda: losses.srrl(T3[0], T3[0], LOGITS[0], LOGITS[0]),
    "simkd": lambda: losses.simkd(T3[0], T3[0]),
    "sdd": lambda: losses.sdd(REGIONS[0], REGIONS[0], LABELS),
    "catkd": lambda: losses.catkd(T3[0], T3[0]),
    "nd": lambda: losses.nd(MEANS[LABELS], MEANS[LABELS], MEANS, LABELS),
    "vitkd": lambda: losses.vitkd(TOKENS, TOKENS, SAME_T[1], SAME_T[1], MASKED),
    "attention": lambda: losses.attention(T3, T3),
    "nst": lambda: losses.nst(T3, T3),
    "fsp": lambda: losses.fsp(EQUAL_T, EQUAL_T),
    "factor_transfer": lambda: losses.factor_transfer(T3[1], T3[1]),
    "review": lambda: losses.review(SAME_T, SAME_T),
    "similarity": lambda: losses.similarity(WIDER, WIDER),
    "correlation": lambda: losses.correlation(WIDER, WIDER),
    "rkd": lambda: losses.rkd(WIDER, WIDER),
    "pkt": lambda: losses.pkt(WIDER, WIDER),
    "dkd": lambda: losses.dkd(LOGITS[1], LOGITS[1], LABELS),
    "dist": lambda: losses.dist(LOGITS[1], LOGITS[1]),
    "svd": lambda: losses.svd(EQUAL_T, EQUAL_T),
    "mlkd": lambda: losses.mlkd(LOGITS[1], LOGITS[1], STRONG[1], STRONG[1]),
    "hsakd": lambda: losses.hsakd(BRANCHES[0], BRANCHES[0]),
}


@pytest.mark.parametrize("name", AT_EQUALITY)
def test_zero_at_equality(name):
    # DIST's correlation has 1e-8 in its denominator, which is not small beside the variance of softened probabilities.
    np.testing.assert_allclose(jax.jit(AT_EQUALITY[name])(), 0, atol=1e-4 if name == "dist" else 1e-7)


def test_known_minima():
    n = BATCH
    equal = 7 * (1 / n) ** 2.02  # c = (n - 1) / n: deviations are unbiased, the mean product is divided by n
    np.testing.assert_allclose(losses.itrd_correlation(VECTORS[0], VECTORS[0], alpha=1.01), np.log2(equal))
    np.testing.assert_allclose(losses.vid(SAME_T, SAME_T, [np.ones(w) for w in (4, 6, 8)]), 0)
    beyond = tuple(np.sign(t) * 1.5 for t in SAME_T)
    np.testing.assert_allclose(losses.activation_boundary(beyond, SAME_T), 0)
    clipped = tuple(np.maximum(t, m) - 0.2 * (t < 0) for t, m in zip(SAME_T, MARGINS, strict=True))
    np.testing.assert_allclose(losses.ofd(clipped, SAME_T, MARGINS), 0, atol=1e-12)


rotation = np.linalg.qr(rng.normal(size=(7, 7)))[0]
INVARIANCES = {
    "attention, scale": (lambda s: losses.attention(s, T3), S3, lambda s: tuple(3 * f for f in s)),
    "attention, channels": (lambda s: losses.attention(s, T3), S3, lambda s: tuple(f[..., ::-1] for f in s)),
    "nst, scale of a channel": (
        lambda s: losses.nst(s, T3), S3, lambda s: tuple(f * np.arange(1, f.shape[-1] + 1) for f in s)),
    "factor_transfer, scale": (lambda s: losses.factor_transfer(s, T3[1]), S3[1], lambda s: 2 * s),
    "similarity, rotation": (lambda s: losses.similarity(s, WIDER), VECTORS[0], lambda s: 2 * s @ rotation),
    "rkd, shift, scale, rotation": (lambda s: losses.rkd(s, WIDER), VECTORS[0], lambda s: 3 * s @ rotation + 5),
    "pkt, scale of an example": (lambda s: losses.pkt(s, WIDER), VECTORS[0], lambda s: s * np.arange(1, 6)[:, None]),
    "itrd_mutual, rotation": (lambda s: losses.itrd_mutual(s, WIDER), VECTORS[0], lambda s: 2 * s @ rotation),
    "itrd_correlation, scale and shift": (
        lambda s: losses.itrd_correlation(s, VECTORS[1]), VECTORS[0], lambda s: s * np.arange(1, 8) + 3),
    "dkd, shift": (lambda s: losses.dkd(s, LOGITS[1], LABELS), LOGITS[0], lambda s: s + 4),
    "kd standardised, scale and shift": (
        lambda s: losses.kd(s, LOGITS[1], standardize=True), LOGITS[0], lambda s: 3 * s + 4),
}  # fmt: skip


@pytest.mark.parametrize("name", INVARIANCES)
def test_invariance(name):
    loss, student, change = INVARIANCES[name]
    loss = jax.jit(loss)
    np.testing.assert_allclose(loss(change(student)), loss(student), rtol=1e-5, atol=1e-9)


def test_order_of_examples_matters_to_correlation_alone():
    order = np.array([2, 0, 4, 1, 3])
    for name in ("similarity", "rkd", "pkt", "itrd_mutual"):
        loss = jax.jit(getattr(losses, name))
        np.testing.assert_allclose(loss(VECTORS[0][order], WIDER[order]), loss(VECTORS[0], WIDER), rtol=1e-9)
    shuffled = losses.correlation(VECTORS[0][order], VECTORS[1][order])
    assert abs(shuffled - losses.correlation(VECTORS[0], VECTORS[1])) > 1e-3


def test_dkd_is_kd_taken_apart():
    """KD is the label's term plus (1 - p_T(label)) times the other classes' term (Zhao et al., 2022, eq. 6)."""
    temperature = 2.0
    p = numpy_maps.softmax(LOGITS[1] / temperature)[np.arange(BATCH), LABELS]
    parts = [
        losses.dkd(*LOGITS, LABELS, alpha=alpha, beta=beta, temperature=temperature)
        for alpha, beta in ((1.0, 0.0), (0.0, 1.0))
    ]
    np.testing.assert_allclose(parts[0] + (1 - p) * parts[1], losses.kd(*LOGITS, temperature=temperature), rtol=1e-10)


def test_ofa_with_exponent_1_is_the_cross_entropy_with_the_teacher():
    p, q = (numpy_maps.softmax(x) for x in (LOGITS[1], LOGITS[0]))
    np.testing.assert_allclose(losses.ofa(LOGITS[0], (), LOGITS[1], LABELS), -(p * np.log(q)).sum(-1), rtol=1e-12)


def test_dist_masks_the_columns_and_gathers_them_over_devices():
    student, teacher = (2 * rng.normal(size=(8, 6)) for _ in range(2))
    mask = np.array([1, 1, 0, 1, 1, 1, 0, 1], bool)
    dist = jax.jit(losses.dist)
    sliced, whole = dist(student[mask], teacher[mask]), dist(student, teacher, where=mask)
    np.testing.assert_allclose(whole[mask], sliced, rtol=1e-9)
    tokens = dist(*(x.reshape(2, 4, 6) for x in (student, teacher)), where=mask.reshape(2, 4))
    np.testing.assert_allclose(tokens.reshape(8), whole, rtol=1e-9)  # the columns run over all leading axes
    shards = [x.reshape(4, 2, *x.shape[1:]) for x in (student, teacher, mask)]
    spread = jax.jit(jax.vmap(lambda s, t, m: losses.dist(s, t, where=m, axis_name="d"), axis_name="d"))(*shards)
    np.testing.assert_allclose(np.reshape(spread, 8), whole, rtol=1e-9)


def test_standardised_logits():
    z = losses.standardize_logits(LOGITS[0])
    np.testing.assert_allclose(z.mean(-1), 0, atol=1e-12)
    np.testing.assert_allclose(z.std(-1, ddof=1), 1, rtol=1e-6)
    for name, arguments in (("kd", {}), ("ttm", {"gamma": 0.5}), ("wttm", {"gamma": 0.5})):
        loss = getattr(losses, name)
        plain = loss(*(losses.standardize_logits(x) for x in LOGITS), **arguments)
        np.testing.assert_allclose(loss(*LOGITS, standardize=True, **arguments), plain, rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_standardised_constant_logits_have_the_derivative_of_the_formula(dtype):
    """z / (deviation + 1e-7) has the derivative 1e7 at deviation 0, as in PyTorch; 1000.1 is not exact in binary."""
    student = np.full_like(LOGITS[0], 1000.1, dtype=dtype)
    total = lambda s: losses.kd(s, LOGITS[1].astype(dtype), temperature=1.0, standardize=True).sum()
    gradient = jax.jit(jax.grad(total))
    p = numpy_maps.softmax((LOGITS[1] - LOGITS[1].mean(-1, keepdims=True)) / LOGITS[1].std(-1, ddof=1, keepdims=True))
    np.testing.assert_array_equal(losses.standardize_logits(student), 0)
    np.testing.assert_allclose(gradient(student), (1 / 6 - p) * 1e7, rtol=1e-4)


def test_differences_of_zero_have_no_gradient():
    """The derivative of |x| is 0 at 0, as in PyTorch."""
    teacher = VECTORS[1].copy()
    teacher[1, 2] = VECTORS[0][1, 2]
    assert np.asarray(jax.jit(jax.grad(losses.correlation))(VECTORS[0], teacher))[1, 2] == 0
    # Not compiled: a compiler may round the two sides in different ways, and then their difference is not 0.
    np.testing.assert_array_equal(jax.grad(losses.factor_transfer)(S3[2], S3[2]), 0)


@pytest.mark.parametrize("name", ["dkd", "nkd"])
def test_a_class_that_both_sides_mask_out_plays_no_part(name):
    loss, labels = jax.jit(getattr(losses, name)), np.array([0, 1, 2, 3, 4])
    masked = [np.concatenate([x, np.full((BATCH, 1), -np.inf)], axis=1) for x in LOGITS]
    np.testing.assert_allclose(loss(*masked, labels), loss(*LOGITS, labels), rtol=1e-12)
    gradient = jax.jit(jax.grad(lambda s, t: loss(s, t, labels).sum()))
    gradients = [np.asarray(gradient(*pair)) for pair in (masked, LOGITS)]
    np.testing.assert_allclose(gradients[0][:, :-1], gradients[1], atol=1e-12)
    np.testing.assert_array_equal(gradients[0][:, -1], 0)


SHIFTED = {
    "dkd": lambda s, t: losses.dkd(s, t, LABELS),
    "nkd": lambda s, t: losses.nkd(s, t, LABELS),
    "ttm": lambda s, t: losses.ttm(s, t, gamma=0.3),
    "kd, standardised": lambda s, t: losses.kd(s, t, standardize=True),
}


@pytest.mark.parametrize("name", SHIFTED)
def test_a_common_shift_of_the_logits_costs_no_precision(name):
    student, teacher = (np.round(64 * x) / 64 for x in LOGITS)  # so that a shift is exact in float32
    loss = jax.jit(SHIFTED[name])
    shifted = loss(np.float32(student + 3e4), np.float32(teacher - 3e4))
    np.testing.assert_allclose(shifted, loss(student, teacher), rtol=2e-5)


def test_contrast_in_float32_adds_up_many_negatives():
    scores = np.random.default_rng(4).normal(0, 1.25, (4, 16385))
    normalizer = np.exp(scores).mean() * 50_000
    value = losses.contrast_loss(scores.astype(np.float32), np.float32(normalizer), examples=50_000)
    np.testing.assert_allclose(value, losses.contrast_loss(scores, normalizer, examples=50_000), rtol=2e-6)


def test_columns_of_one_value_are_zeros_to_itrd_correlation():
    """Rounding errors of constant columns are not scaled up to a deviation of 1."""
    student = np.tile(VECTORS[0][:1], (BATCH, 1))
    for dtype in (np.float32, np.float64):
        both = jax.jit(jax.value_and_grad(losses.itrd_correlation))
        value, gradient = both(student.astype(dtype), VECTORS[1].astype(dtype))
        np.testing.assert_allclose(value, np.log2(7), rtol=1e-6)
        np.testing.assert_array_equal(gradient, 0)


def test_distances_of_rkd_are_exact_in_float32_far_from_zero():
    student, teacher = np.round(64 * VECTORS[0]) / 64 + 100, np.round(64 * WIDER) / 64 - 100
    both = jax.jit(jax.value_and_grad(losses.rkd))
    value, gradient = both(student.astype(np.float32), teacher.astype(np.float32))
    expected = both(student, teacher)
    np.testing.assert_allclose(value, expected[0], rtol=2e-6)
    np.testing.assert_allclose(gradient, expected[1], rtol=1e-5, atol=1e-5 * np.abs(expected[1]).max())


def test_opposite_embeddings_are_finite_to_pkt_in_float32():
    """Their similarity is 0, which rounding can make more negative than the 1e-7 that the logarithm adds."""
    directions = np.random.default_rng(5).normal(size=(40, 1, 1024)).astype(np.float32)
    students = 10 * directions * np.array([[1], [-1.5]], np.float32)
    both = jax.jit(jax.vmap(jax.value_and_grad(lambda s: losses.pkt(s, directions[:2, 0]))))
    values, gradients = both(students)
    assert np.isfinite(values).all() and np.isfinite(gradients).all()


def test_margins_are_means_of_what_is_below_zero():
    scale, bias = np.array([1.0, -2.0, 0.5]), np.array([0.3, -1.0, 0.0])
    for s, b, margin in zip(scale, bias, jax.jit(losses.ofd_margins)(scale, bias), strict=True):
        draws = np.random.default_rng(0).normal(b, abs(s), 400_000)
        np.testing.assert_allclose(margin, draws[draws < 0].mean(), rtol=0.01)
    np.testing.assert_allclose(losses.ofd_margins(np.array([0.1]), np.array([5.0])), -0.3)  # almost never negative
    np.testing.assert_allclose(losses.ofd_margins(np.zeros(2), np.array([5.0, -2.0])), [0, -2])


def test_scores_by_one_product_equal_scores_by_gathering():
    embeddings, rows = rng.normal(size=(3, 4)), rng.integers(0, 50, (3, 6))
    for memory in (rng.normal(size=(24, 4)), rng.normal(size=(50, 4))):
        rows_there = rows % len(memory)
        expected = np.einsum("bd,bkd->bk", embeddings, memory[rows_there]) / 0.1
        np.testing.assert_allclose(losses.contrast_scores(embeddings, memory, rows_there, temperature=0.1), expected)
    z = losses.first_normalizer(SCORES[0], examples=40)
    np.testing.assert_allclose(z, np.exp(SCORES[0]).mean() * 40)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: losses.hint(S3[0], T3[0]),
            r"stage 1: student \[5, 8, 8, 4\] and teacher \[5, 8, 8, 6\].*equal shapes",
        ),
        (lambda: losses.ickd(S3[0], T3[0]), "stage 1: .*equal channels"),
        (lambda: losses.srrl(S3[0], T3[0], *LOGITS), "stage 1: .*equal channels"),
        (lambda: losses.srrl(S3[0], S3[0], LOGITS[0], LOGITS[1][:, :3]), r"crossed_logits \[5, 6\] and teacher_logits"),
        (lambda: losses.simkd(S3[0], T3[0]), "stage 1: .*equal channels"),
        (lambda: losses.sdd(REGIONS[0], REGIONS[1][:, :2], LABELS), r"\[5, 5, 6\] and teacher_regions \[5, 2, 6\]"),
        (lambda: losses.catkd(S3[0], T3[0]), "stage 1: .*equal channels"),
        (
            lambda: losses.nd(VECTORS[0], WIDER, MEANS, LABELS),
            r"\[5, 7\] and teacher_vectors \[5, 9\] must have one shape",
        ),
        (lambda: losses.vitkd(TOKENS, TOKENS[:1], S3[0], S3[0], MASKED), "must have one shape each"),
        (lambda: losses.vitkd(TOKENS, TOKENS, SAME_T[0], SAME_T[0], MASKED), r"masked \[5, 4, 4\] has the first three"),
        (lambda: losses.attention(S3, T3[:2]), "3 maps and teacher_features 2"),
        (lambda: losses.fsp(S3, T3), "stage 1: .*equal channels"),
        (lambda: losses.fsp(S3[:1], S3[:1]), "at least two maps"),
        (lambda: losses.nst([VECTORS[0]], [VECTORS[1]]), "must be .batch, height, width, channels"),
        (lambda: losses.vid(SAME_S, SAME_T, VARIANCES[:2]), "2 entries for 3 stages"),
        (lambda: losses.vid(SAME_S, SAME_T, [np.ones(1)] * 3), r"stage 1: variances \[1\] beside maps \[5, 8, 8, 4\]"),
        (lambda: losses.ofd(SAME_S, SAME_T, MARGINS[::-1]), r"stage 1: margins \[8\] beside maps"),
        (lambda: losses.attention(S3, T3, exponent=0.0), "exponent must be above 0"),
        (lambda: losses.svd(EQUAL_S, EQUAL_T, k=0), "k must be an integer, at least 1"),
        (
            lambda: losses.correlation(VECTORS[0], WIDER),
            r"\[5, 7\] and teacher_embeddings \[5, 9\] must have one shape",
        ),
        (lambda: losses.rkd(VECTORS[0], WIDER[:3]), "of one batch"),
        (lambda: losses.dkd(*LOGITS, np.ones(3, int)), r"integers \[5\] for logits \[5, 6\], not int64 \[3\]"),
        (lambda: losses.hsakd(BRANCHES[0], BRANCHES[1][:2]), "must have one shape each"),
        (
            lambda: losses.mlkd(*LOGITS, *(x[:, 1:] for x in STRONG)),
            r"weak view \[5, 6\] and of the strong one \[5, 5\]",
        ),
        (lambda: losses.class_gkl(*LOGITS, OUTPUTS[1:], LABELS), r"class_outputs \[5, 6\] must be"),
        (lambda: losses.wkdl(*LOGITS, COSTS[:, 1:], LABELS), r"class_costs \[6, 5\] must be"),
        (lambda: losses.relation_costs(np.ones((2, 3, 4)), np.ones(3)), r"\[2, 3, 4\] must be .* counts \[3\]"),
        (lambda: losses.hsakd((), ()), "must be branches of"),
        (lambda: losses.contrast_loss(np.zeros(3), 1.0, examples=3), r"\[batch, 1 \+ negatives\], not \[3\]"),
    ],
)
def test_shapes_that_do_not_fit_are_printed(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_uneven_grids_are_averaged_as_in_pytorch():
    x = rng.normal(size=(2, 7, 5, 3))
    np.testing.assert_allclose(losses.adaptive_avg_pool(x, (3, 3)), numpy_maps.pool(x, 3), rtol=1e-12)

"""Laws of the divergences: bounds, limits, symmetry, precision near equality, rows that do not count, derivatives.

That each is its formula, in value and gradient, is tested in test_every_loss.py.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import numpy_losses
import pytest

from kdjax import losses

BATCH, CLASSES = 6, 8
RNG = np.random.default_rng(5)
STUDENT, TEACHER = 3 * RNG.normal(size=(2, BATCH, CLASSES))
LABELS = RNG.integers(0, CLASSES, BATCH)
every_kind = pytest.mark.parametrize("kind", losses.DIVERGENCES)
# Every loss that is 0 where the student is the teacher and never below, with its least logits.
COMPARISONS = {
    **{kind: functools.partial(losses.divergence, kind=kind) for kind in losses.DIVERGENCES},
    "kd": losses.kd,
    "ttm": functools.partial(losses.ttm, gamma=1.0),
    "wttm": functools.partial(losses.wttm, gamma=1.0),
    "dkd": lambda s, t: losses.dkd(s, t, np.arange(s.shape[0]) % s.shape[-1]),
}
every_comparison = pytest.mark.parametrize("name", COMPARISONS)


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def extreme(seed=0):
    """Returns logits of up to ±50 of both sides, equal ones among them."""
    rng = np.random.default_rng(seed)
    student, teacher = rng.uniform(-50, 50, size=(2, BATCH, CLASSES))
    teacher[0], teacher[1] = student[0], student[1] + 1e-3 * rng.normal(size=CLASSES)
    teacher[2], student[3] = 50 * np.eye(CLASSES)[1], -50 * np.eye(CLASSES)[2]
    return student, teacher


@every_comparison
def test_nothing_is_below_0_and_equal_sides_give_exactly_0(name):
    loss = jax.jit(COMPARISONS[name])
    for dtype in (jnp.bfloat16, jnp.float32):
        for student, teacher in (extreme(), (STUDENT, TEACHER), (STUDENT, STUDENT + 1e-4 * TEACHER)):
            values = loss(jnp.asarray(student, dtype), jnp.asarray(teacher, dtype))
            assert (values >= 0).all() and np.isfinite(values).all()
    equal = jnp.asarray(extreme()[0], jnp.float32)
    np.testing.assert_array_equal(loss(equal, equal), 0)
    if name != "total_variation":  # which has no derivative there
        np.testing.assert_allclose(jax.grad(lambda s: loss(s, equal).sum())(equal), 0, atol=1e-12)


@every_comparison
def test_rows_that_do_not_count_may_be_anything(name):
    """NaN and inf show in the value of their own row; without it, they change neither the value nor the gradient."""
    student, teacher = (jnp.asarray(x, jnp.float32) for x in (STUDENT, TEACHER))
    bad_student, bad_teacher = student.at[1, 2].set(jnp.nan).at[3].set(jnp.inf), teacher.at[1].set(-jnp.inf)
    bad_teacher = bad_teacher.at[4, 0].set(jnp.nan)
    counted = np.array([1, 0, 1, 0, 0, 1], bool)
    loss = COMPARISONS[name]
    total = lambda s, t: jnp.where(counted, loss(s, t), 0).sum()
    found = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))
    assert np.isnan(np.asarray(loss(bad_student, bad_teacher))[~counted]).all()
    (value, slopes), (expected, expected_slopes) = found(bad_student, bad_teacher), found(student, teacher)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    chex.assert_trees_all_close(slopes, expected_slopes, atol=1e-7)
    assert not np.asarray(slopes[0])[~counted].any()


@every_kind
def test_where_gives_0_for_bad_rows_and_leaves_good_ones_as_they_are(kind):
    counted = np.array([1, 0, 1, 0, 1, 1], bool)
    student = STUDENT.copy()
    student[1] = np.nan
    student[4] = np.inf
    plain = losses.divergence(STUDENT, TEACHER, kind=kind)
    values = losses.divergence(student, TEACHER, kind=kind, where=counted)
    np.testing.assert_array_equal(values, np.where([0, 1, 0, 0, 0, 0], 0, np.where([0, 0, 0, 0, 1, 0], np.nan, plain)))


BOUNDS = {
    "skew_kl": -np.log(0.1),
    "skew_reverse_kl": -np.log(0.1),
    "jensen_shannon": np.log(2),
    "total_variation": 1,
}


@pytest.mark.parametrize("kind", BOUNDS)
def test_bounds(kind):
    opposite = 50 * np.eye(CLASSES)[:BATCH], 50 * np.eye(CLASSES)[2:]
    for pair in (extreme(), (STUDENT, TEACHER), opposite):
        assert (losses.divergence(*pair, kind=kind) <= BOUNDS[kind] * (1 + 1e-6)).all()
    np.testing.assert_allclose(losses.divergence(*opposite, kind=kind), BOUNDS[kind], rtol=1e-6)


@pytest.mark.parametrize("kind", ["jeffreys", "jensen_shannon", "total_variation"])
def test_symmetry(kind):
    one, other = (losses.divergence(*pair, kind=kind) for pair in ((STUDENT, TEACHER), (TEACHER, STUDENT)))
    np.testing.assert_allclose(one, other, rtol=1e-6)


def test_reversed_is_with_sides_exchanged(float64):
    for one, other, options in (("forward_kl", "reverse_kl", {}), ("skew_kl", "skew_reverse_kl", {"skew": 0.3})):
        found = losses.divergence(STUDENT, TEACHER, kind=one, **options)
        np.testing.assert_allclose(found, losses.divergence(TEACHER, STUDENT, kind=other, **options), rtol=1e-13)


def test_ends_of_the_families(float64):
    forward, reverse = losses.forward_kl(STUDENT, TEACHER), losses.reverse_kl(STUDENT, TEACHER)
    same = functools.partial(np.testing.assert_allclose, rtol=1e-6)
    js = functools.partial(losses.jensen_shannon, STUDENT, TEACHER)
    for end in (0.0, 1.0):
        np.testing.assert_allclose(js(beta=end), 0, atol=1e-15)
    for near in (0.0, 1e-9):
        same(js(beta=near, scaled=True), forward)
        same(js(beta=1 - near, scaled=True), reverse)
        same(losses.skew_kl(STUDENT, TEACHER, skew=near), forward)
        same(losses.skew_reverse_kl(STUDENT, TEACHER, skew=near), reverse)
    np.testing.assert_allclose(losses.skew_kl(STUDENT, TEACHER, skew=1.0), 0, atol=1e-15)
    same(losses.kd(STUDENT, TEACHER, temperature=3.0) / 9, losses.forward_kl(STUDENT, TEACHER, temperature=3.0))


def test_numbers_of_other_libraries(float64):
    """What the docstring of jensen_shannon says, against the formulas of the libraries' code."""
    p, q = numpy_losses.softmax(TEACHER), numpy_losses.softmax(STUDENT)
    kl = numpy_losses.kl
    for beta in (0.1, 0.5, 0.9):
        trl = beta * kl(p, beta * p + (1 - beta) * q) + (1 - beta) * kl(q, beta * p + (1 - beta) * q)
        np.testing.assert_allclose(losses.jensen_shannon(STUDENT, TEACHER, beta=beta), trl, rtol=1e-12)
        mixture = (1 - beta) * p + beta * q
        easydel = beta * kl(p, mixture) + (1 - beta) * kl(q, mixture)
        ours = beta * losses.skew_kl(STUDENT, TEACHER, skew=1 - beta)
        ours += (1 - beta) * losses.skew_reverse_kl(STUDENT, TEACHER, skew=beta)
        np.testing.assert_allclose(ours, easydel, rtol=1e-12)
        distillm = beta * kl(q, mixture) + (1 - beta) * kl(p, mixture)
        np.testing.assert_allclose(losses.jensen_shannon(STUDENT, TEACHER, beta=1 - beta), distillm, rtol=1e-12)


@pytest.mark.parametrize(
    ("alpha", "beta"),
    [(1, 0), (0, 1), (0, 0), (0, 0.4), (0.4, 0), (0.3, -0.3), (-1, 1), (2, -1), (-0.5, 0.2), (0.5, 0.5)],
)
def test_alpha_beta_has_its_limits_in_value_and_gradient(alpha, beta, float64):
    expected = numpy_losses.alpha_beta(STUDENT, TEACHER, alpha=alpha, beta=beta)
    total = jax.jit(lambda s, a, b: losses.alpha_beta(s, TEACHER, alpha=a, beta=b).sum())
    np.testing.assert_allclose(losses.alpha_beta(STUDENT, TEACHER, alpha=alpha, beta=beta), expected, rtol=1e-12)
    slope = jax.grad(total)(STUDENT, 1.0 * alpha, 1.0 * beta)
    step = 1e-6 * RNG.normal(size=STUDENT.shape)
    formula = functools.partial(numpy_losses.alpha_beta, teacher_logits=TEACHER, alpha=alpha, beta=beta)
    rise = (formula(STUDENT + step) - formula(STUDENT - step)).sum() / 2
    np.testing.assert_allclose((slope * step).sum(), rise, rtol=1e-5)
    nearby = total(STUDENT, alpha + 1e-9, beta - 1e-9)
    np.testing.assert_allclose(nearby, expected.sum(), rtol=1e-6)


def test_alpha_beta_refuses_where_it_explodes():
    with pytest.raises(ValueError, match="alpha 1 with beta -1"):
        losses.alpha_beta(STUDENT, TEACHER, alpha=1.0, beta=-1.0)


@pytest.mark.parametrize("temperature", [1e3, 1e4])
@every_kind
def test_nearly_uniform_sides_keep_their_digits(kind, temperature):
    function = jax.jit(lambda s, t: losses.divergence(s, t, kind=kind, temperature=temperature))
    single = function(np.float32(STUDENT), np.float32(TEACHER))
    with jax.enable_x64(True):
        double = function(STUDENT, TEACHER)
    np.testing.assert_allclose(single, double, rtol=1e-4)


@pytest.mark.parametrize(("temperature", "rtol"), [(1e3, 1e-6), (1e4, 1e-6), (1e5, 1e-4)])
def test_kd_at_high_temperature_is_the_distance_of_the_centred_logits(temperature, rtol):
    """T^2 KL tends to the variance of the logits' difference over classes, / 2 (Hinton et al., 2015)."""
    with jax.enable_x64(True):
        double = losses.kd(STUDENT, TEACHER, temperature=temperature)
        dkd = losses.dkd(STUDENT, TEACHER, LABELS, temperature=temperature)
    np.testing.assert_allclose(double, np.var(STUDENT - TEACHER, axis=-1) / 2, rtol=20 / temperature)
    pair = np.float32(STUDENT), np.float32(TEACHER)
    np.testing.assert_allclose(losses.kd(*pair, temperature=temperature), double, rtol=rtol)
    np.testing.assert_allclose(losses.dkd(*pair, LABELS, temperature=temperature), dkd, rtol=1e-3)


@pytest.mark.parametrize(
    "name", ["kd", "wttm", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ttm", *losses.DIVERGENCES))]
)
def test_derivatives_of_first_and_second_order_forward_and_reverse(name, float64):
    """Of the student's and the teacher's logits and of a hyper-parameter; the derivative of a KL has its own rule."""
    key = "gamma" if name.endswith("ttm") else "temperature"

    def loss(student, teacher, number):
        return losses.LOSSES[name](student, teacher, **{key: number})

    arguments = STUDENT[:2, :4], TEACHER[:2, :4], 0.7
    jax.test_util.check_grads(jax.jit(loss), arguments, order=2, modes=("fwd", "rev"), rtol=1e-4, atol=1e-4)


def test_derivatives_under_vmap_and_scan(float64):
    slope = jax.grad(lambda s, t: losses.kd(s, t).sum())
    one_by_one = np.stack([slope(s, t) for s, t in zip(STUDENT, TEACHER, strict=True)])
    np.testing.assert_allclose(jax.vmap(slope)(STUDENT, TEACHER), one_by_one, rtol=1e-12)
    scanned = jax.lax.scan(lambda _, pair: (None, slope(*pair)), None, (STUDENT, TEACHER))[1]
    np.testing.assert_allclose(scanned, one_by_one, rtol=1e-12)


def test_an_unknown_kind_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="kind must be one of forward_kl, reverse_kl"):
        losses.divergence(STUDENT, TEACHER, kind="kl")


@pytest.mark.parametrize("name", ["dkd", "nkd"])
def test_a_label_that_no_class_has_is_nan(name):
    labels = np.array([-1, -100, CLASSES, 0, 1, 2])
    loss = lambda s: getattr(losses, name)(s, TEACHER, labels)
    assert np.isnan(loss(STUDENT)[:3]).all() and np.isfinite(loss(STUDENT)[3:]).all()
    slope = jax.grad(lambda s: jnp.where((labels >= 0) & (labels < CLASSES), loss(s), 0).sum())(jnp.asarray(STUDENT))
    assert np.isfinite(slope).all() and not np.asarray(slope)[:3].any()


@pytest.mark.parametrize(
    "options",
    [{}, pytest.param({"beta": 0.2, "scaled": True}, marks=pytest.mark.slow), {"beta": 1.0, "scaled": True}],
)
def test_the_rule_of_jensen_shannon_holds_in_both_modes_and_for_second_derivatives(options):
    """Of the student's and of the teacher's logits; the derivative by beta too, inside (0, 1)."""
    with jax.enable_x64(True):
        pair = tuple(np.random.default_rng(3).normal(size=(2, 3, 5)))
        function = jax.jit(lambda s, t: losses.jensen_shannon(s, t, **options))
        jax.test_util.check_grads(function, pair, order=2, modes=("fwd", "rev"), atol=1e-5, rtol=1e-5)
        if 0 < (beta := options.get("beta", 0.5)) < 1:
            by_beta = lambda b: losses.jensen_shannon(*pair, **{**options, "beta": b})  # noqa: E731
            jax.test_util.check_grads(by_beta, (beta,), order=2, modes=("fwd", "rev"), atol=1e-5, rtol=1e-5)


def test_the_gradient_of_jensen_shannon_keeps_its_digits_where_both_sides_are_nearly_equal():
    """The gradient is of the size of the difference of the logits there, and no term of it is larger."""
    rng = np.random.default_rng(4)
    teacher, step = rng.normal(size=(2, 3, 5))
    student, teacher32 = np.float32(teacher + 1e-3 * step), np.float32(teacher)
    with jax.enable_x64(True):
        exact = jax.grad(lambda s: losses.jensen_shannon(s, np.float64(teacher32), beta=0.3).sum())(np.float64(student))
    found = jax.grad(lambda s: losses.jensen_shannon(s, teacher32, beta=0.3).sum())(student)
    np.testing.assert_allclose(found, exact, rtol=2e-3, atol=1e-9)

"""Losses on feature maps [batch, height, width, channels]; each returns the scalar that its paper's code reduces to.

Those on several maps take sequences, from shallow to deep, equally long. The teacher's side is frozen by whoever runs
it. A method's trainable part (a regressor, fusion blocks) stands before the loss, which sees maps that fit.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array
from jax.scipy.stats import norm

from kdjax.losses._checks import as_float, check_range
from kdjax.losses._maps import adaptive_avg_pool, as_pair, as_pairs, normalized, same_shape, same_size

Maps = Sequence[Array]


def hint(student_features: Array, teacher_features: Array) -> Array:
    """FitNet's hint, the mean squared difference of one pair of maps (Romero et al., 2015, eq. 3).

    Args:
      student_features: [batch, h, w, channels], already regressed to the teacher's shape.
      teacher_features: [batch, h, w, channels].

    Returns:
      [] scalar.

    Raises:
      ValueError: the shapes differ.
    """
    ((student, teacher),) = same_shape([as_pair(student_features, teacher_features)])
    return jnp.mean((student - teacher) ** 2)


def attention(student_features: Maps, teacher_features: Maps, *, exponent: float = 2.0) -> Array:
    """Attention transfer: squared difference of normalised maps mean_c |f|^p (Zagoruyko & Komodakis, 2017, eq. 2).

    Args:
      student_features: maps, of any widths; the larger of a pair is averaged down to the smaller one's size.
      teacher_features: maps.
      exponent: p, above 0, of |f| as in the paper; RepDistiller takes f^p, which differs for odd p and signed maps.

    Returns:
      [] sum over stages of the means over positions and examples.

    Raises:
      ValueError: lists that do not pair, or an exponent out of range.
    """
    check_range("exponent", exponent)
    total = 0.0
    for student, teacher in as_pairs(student_features, teacher_features):
        ours, theirs = (_attention_map(f, exponent) for f in same_size(student, teacher))
        total += jnp.mean((ours - theirs) ** 2)
    return total


def _attention_map(x: Array, exponent) -> Array:
    # exp(p log|f|) would lose the gradient of an even power at zero.
    powered = x**2 if isinstance(exponent, int | float) and exponent == 2 else _power(jnp.abs(x), exponent)
    return normalized(jnp.mean(powered, axis=-1).reshape(x.shape[0], -1))


def _power(x: Array, exponent) -> Array:
    positive = x > 0
    return jnp.where(positive, jnp.where(positive, x, 1.0) ** exponent, 0.0)


def nst(student_features: Maps, teacher_features: Maps) -> Array:
    """Neuron selectivity transfer: MMD of normalised channels under the kernel (x y)^2 (Huang & Wang, 2017, eq. 5).

    Args:
      student_features: maps, of any widths; the larger of a pair is averaged down to the smaller one's size.
      teacher_features: maps.

    Returns:
      [] sum over stages of mean k(t, t) + mean k(s, s) - 2 mean k(s, t); at least 0.

    Raises:
      ValueError: lists that do not pair.
    """
    total = 0.0
    for student, teacher in as_pairs(student_features, teacher_features):
        student, teacher = (
            normalized(f.reshape(f.shape[0], -1, f.shape[-1]), axis=1) for f in same_size(student, teacher)
        )
        total += _kernel(teacher, teacher) + _kernel(student, student) - 2 * _kernel(student, teacher)
    return total


def _kernel(a: Array, b: Array) -> Array:
    return jnp.mean(jnp.einsum("bpi,bpj->bij", a, b, precision="highest") ** 2)


def fsp(student_features: Maps, teacher_features: Maps) -> Array:
    """Flow of solution procedure: squared difference of Gram matrices between successive maps (Yim et al., 2017).

    Args:
      student_features: stem and stages, two maps at least, with the teacher's channels.
      teacher_features: likewise.

    Returns:
      [] sum over successive pairs of the means over examples and channels.

    Raises:
      ValueError: lists that do not pair, fewer than two maps, or other channels.
    """
    pairs = same_shape(as_pairs(student_features, teacher_features), (3,))
    if len(pairs) < 2:
        raise ValueError(f"fsp needs two maps at least, not {len(pairs)}.")
    total = 0.0
    for (student, teacher), (next_student, next_teacher) in zip(pairs, pairs[1:]):
        total += jnp.mean((_flow(student, next_student) - _flow(teacher, next_teacher)) ** 2)
    return total


def _flow(bottom: Array, top: Array) -> Array:
    bottom, top = same_size(bottom, top)
    positions = bottom.shape[1] * bottom.shape[2]
    return jnp.einsum("bhwi,bhwj->bij", top, bottom, precision="highest") / positions


def factor_transfer(student_features: Array, teacher_features: Array, *, p1: float = 2.0, p2: float = 1.0) -> Array:
    """Factor transfer: distance of normalised factors mean_c f^p1 (Kim, Park & Kwak, 2018, eq. 3).

    Args:
      student_features: [batch, h, w, channels], the translator's factor.
      teacher_features: [batch, h, w, channels], the paraphraser's.
      p1: power of the factors before their mean over channels.
      p2: 1 is the mean absolute difference, another power the mean of its power.

    Returns:
      [] scalar.

    Raises:
      ValueError: not a pair of maps.
    """
    ours, theirs = (_attention_map(f, p1) for f in same_size(*as_pair(student_features, teacher_features)))
    difference = ours - theirs
    difference = difference * jnp.sign(difference)  # PyTorch's derivative of |x| at 0 is 0, that of jnp.abs 1
    return jnp.mean(difference if isinstance(p2, int | float) and p2 == 1 else _power(difference, p2))


def paraphrase(student_features: Array, teacher_features: Array) -> Array:
    """Mean squared error of a paraphraser's reconstruction of the teacher's map (Kim, Park & Kwak, 2018, eq. 1).

    Args:
      student_features: [batch, h, w, channels], the reconstruction.
      teacher_features: [batch, h, w, channels], what was to be reconstructed.

    Returns:
      [] scalar.

    Raises:
      ValueError: the shapes differ.
    """
    return hint(student_features, teacher_features)


def activation_boundary(student_features: Maps, teacher_features: Maps, *, margin: float = 1.0) -> Array:
    """Activation boundaries: a squared hinge to put the student on the teacher's side of 0 (Heo et al., 2019a).

    Args:
      student_features: maps before their ReLU, already connected to the teacher's shapes.
      teacher_features: maps before their ReLU.
      margin: by which the student should be beyond 0.

    Returns:
      [] sum over stages i of n, weighted by 2^(i - n), of the sum over positions and channels, by 3 / (1000 batch).

    Raises:
      ValueError: lists that do not pair, or maps of other shapes.
    """
    pairs, total = same_shape(as_pairs(student_features, teacher_features)), 0.0
    for i, (student, teacher) in enumerate(pairs, start=1):
        below = (student + margin) ** 2 * ((student > -margin) & (teacher <= 0))
        above = (student - margin) ** 2 * ((student <= margin) & (teacher > 0))
        total += 2.0 ** (i - len(pairs)) * jnp.sum(below + above) * 3 / (1000 * student.shape[0])
    return total


def vid(student_features: Maps, teacher_features: Maps, variances: Sequence[Array]) -> Array:
    """Variational information distillation: Gaussian negative log-likelihood of the teacher's maps (Ahn et al., 2019).

    Args:
      student_features: means that the regressors predict, of the teacher's shapes.
      teacher_features: maps; where a pair's sizes differ, the larger was averaged down before the regressor.
      variances: [channels] of each stage, above 0.

    Returns:
      [] sum over stages of the mean of ((mean - teacher)^2 / variance + log variance) / 2; constants are left out.

    Raises:
      ValueError: lists that do not pair, or maps of other shapes.
    """
    pairs = same_shape(as_pairs(student_features, teacher_features))
    variances = _of_channels("variances", variances, pairs)
    terms = [
        jnp.mean(0.5 * ((mean - teacher) ** 2 / variance + jnp.log(variance)))
        for (mean, teacher), variance in zip(pairs, variances, strict=True)
    ]
    return sum(terms[1:], terms[0])


def review(student_features: Maps, teacher_features: Maps) -> Array:
    """ReviewKD's hierarchical context: squared differences at full size and averaged to 4, 2, 1 (Chen et al., 2021).

    Args:
      student_features: fused maps of the teacher's shapes.
      teacher_features: maps; the pooled vector may come last, as [batch, 1, 1, channels].

    Returns:
      [] sum over stages of the mean squared differences, weighted 1, 1/2, 1/4, 1/8 over their sum; a level that is not
      below the map's height is left out.

    Raises:
      ValueError: lists that do not pair, or maps of other shapes.
    """
    total = 0.0
    for student, teacher in same_shape(as_pairs(student_features, teacher_features)):
        stage, weight, weights = jnp.mean((student - teacher) ** 2), 1.0, 1.0
        for level in (4, 2, 1):
            if level < student.shape[1]:
                weight /= 2
                weights += weight
                stage += weight * jnp.mean(adaptive_avg_pool(student - teacher, (level, level)) ** 2)
        total += stage / weights
    return total


def ofd(student_features: Maps, teacher_features: Maps, margins: Sequence[Array]) -> Array:
    """Overhaul of feature distillation: partial L2 distance to the teacher's margin ReLU (Heo et al., 2019b, eq. 5).

    Args:
      student_features: maps before their ReLU, already connected to the teacher's shapes.
      teacher_features: maps before their ReLU, averaged to the student's sizes.
      margins: [channels] of each stage, below 0 (see `ofd_margins`).

    Returns:
      [] sum over stages i of n, weighted by 2^(i - n), of sums over positions and channels, mean over the batch.

    Raises:
      ValueError: lists that do not pair, or maps of other shapes.
    """
    pairs, total = same_shape(as_pairs(student_features, teacher_features)), 0.0
    margins = _of_channels("margins", margins, pairs)
    for i, ((student, teacher), margin) in enumerate(zip(pairs, margins, strict=True), start=1):
        to_margin = (student > margin) & (teacher <= margin)
        to_teacher = ((student > teacher) & (teacher > margin) & (teacher <= 0)) | (teacher > 0)
        target = jnp.where(to_teacher, teacher, margin)
        distance = jnp.where(to_margin | to_teacher, (student - target) ** 2, 0.0)
        total += 2.0 ** (i - len(pairs)) * jnp.sum(distance) / student.shape[0]
    return total


def _of_channels(name: str, vectors: Sequence[Array], pairs: list[tuple[Array, Array]]) -> list[Array]:
    """Returns one vector [channels] for each pair; refuses others."""
    if len(vectors) != len(pairs):
        raise ValueError(f"{name} has {len(vectors)} entries for {len(pairs)} stages.")
    vectors = [as_float(vector) for vector in vectors]
    for stage, (vector, (_, teacher)) in enumerate(zip(vectors, pairs, strict=True), start=1):
        if vector.shape != teacher.shape[3:]:
            raise ValueError(f"stage {stage}: {name} {list(vector.shape)} beside maps {list(teacher.shape)}.")
    return vectors


def ofd_margins(scale: Array, bias: Array) -> Array:
    """Mean of the negative part of a BatchNorm's output, N(bias, scale^2) cut at 0 (Heo et al., 2019b, eq. 4).

    Args:
      scale: [channels] of the last BatchNorm before the teacher's ReLU, of any sign.
      bias: [channels].

    Returns:
      [channels] bias - |scale| φ(bias / scale) / Φ(-bias / |scale|), or -3 |scale| where that Φ is 0.001 or less.
    """
    scale = jnp.abs(scale)
    ratio = bias / jnp.where(scale > 0, scale, 1.0)
    share = jnp.where(scale > 0, norm.cdf(-ratio), bias < 0)
    margin = bias - scale * norm.pdf(ratio) / jnp.where(share > 0.001, share, 1.0)
    return jnp.where(share > 0.001, margin, -3 * scale)

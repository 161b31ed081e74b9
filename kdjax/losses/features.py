"""Losses on feature maps [batch, height, width, channels]; each returns the scalar of its paper's code.

A loss on several stages takes one sequence of maps a side, equally long, from shallow to deep. Trainable parts between
the networks and a loss (regressors, connectors, fusion blocks) belong to the adapters: a loss sees maps that already
fit. No loss stops a gradient, except where it says so: the caller freezes the teacher.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array
from jax.scipy.stats import norm

from kdjax.losses._checks import add_up, as_float, check_range
from kdjax.losses._maps import Pair, adaptive_avg_pool, as_pair, as_pairs, check_same_shape, normalized, same_size

Maps = Sequence[Array]


def hint(student_features: Array, teacher_features: Array) -> Array:
    """Computes FitNet's hint loss, the mean squared difference of one pair of feature maps.

    Args:
      student_features: Student map [batch, height, width, channels], already regressed to the teacher's shape.
      teacher_features: Teacher map [batch, height, width, channels].

    Returns:
      Mean over all elements [], at least 0.

    Raises:
      ValueError: The shapes differ.

    References:
      Romero, Ballas, Kahou, Chassang, Gatta & Bengio, 2015, "FitNets: Hints for Thin Deep Nets", eq. 3,
      https://arxiv.org/abs/1412.6550
    """
    ((student, teacher),) = check_same_shape([as_pair(student_features, teacher_features)])
    return jnp.mean((student - teacher) ** 2)


def attention(student_features: Maps, teacher_features: Maps, *, exponent: float = 2.0) -> Array:
    """Computes the attention-transfer loss, the squared difference of the L2-normalised maps mean_c |f_c|^p.

    Args:
      student_features: Student maps [batch, height, width, channels], with any numbers of channels. The larger map of
        a pair is averaged down to the smaller one's size.
      teacher_features: Teacher maps [batch, height, width, channels], one for each student map.
      exponent: Power p of |f|, above 0, as in the paper. RepDistiller's code takes f^p, which differs for odd p where
        f is negative.

    Returns:
      Sum over stages of the means over positions and examples [], at least 0.

    Raises:
      ValueError: The lists do not pair up, or the exponent is out of range.

    References:
      Zagoruyko & Komodakis, 2017, "Paying More Attention to Attention: Improving the Performance of Convolutional
      Neural Networks via Attention Transfer", eq. 2, https://arxiv.org/abs/1612.03928
    """
    check_range("exponent", exponent)
    terms = []
    for pair in as_pairs(student_features, teacher_features):
        student, teacher = (_attention_map(features, exponent) for features in same_size(*pair))
        terms.append(jnp.mean((student - teacher) ** 2))
    return add_up(terms)


def _attention_map(x: Array, exponent: float) -> Array:
    """Returns the L2-normalised maps mean_c |x_c|^exponent, flattened to [batch, positions]."""
    # A square needs no care at 0, where the general power has its derivatives replaced by 0.
    powered = x**2 if isinstance(exponent, int | float) and exponent == 2 else _power(jnp.abs(x), exponent)
    return normalized(jnp.mean(powered, axis=-1).reshape(x.shape[0], -1))


def _power(x: Array, exponent: float) -> Array:
    """Returns x^exponent for x of at least 0, with a gradient of 0 at 0, where log(x) is not finite."""
    positive = x > 0
    return jnp.where(positive, jnp.where(positive, x, 1.0) ** exponent, 0.0)


def nst(student_features: Maps, teacher_features: Maps) -> Array:
    """Computes the neuron-selectivity-transfer loss, a maximum mean discrepancy under the kernel k(x, y) = (x y)^2.

    The samples of the discrepancy are the channels of a map, each L2-normalised over positions.

    Args:
      student_features: Student maps [batch, height, width, channels], with any numbers of channels. The larger map of
        a pair is averaged down to the smaller one's size.
      teacher_features: Teacher maps [batch, height, width, channels], one for each student map.

    Returns:
      Sum over stages of mean k(t, t) + mean k(s, s) - 2 mean k(s, t) [], at least 0 up to rounding.

    Raises:
      ValueError: The lists do not pair up.

    References:
      Huang & Wang, 2017, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", eq. 5,
      https://arxiv.org/abs/1707.01219
    """
    terms = []
    for pair in as_pairs(student_features, teacher_features):
        student, teacher = (normalized(f.reshape(f.shape[0], -1, f.shape[-1]), axis=1) for f in same_size(*pair))
        terms.append(_kernel(teacher, teacher) + _kernel(student, student) - 2 * _kernel(student, teacher))
    return add_up(terms)


def _kernel(a: Array, b: Array) -> Array:
    """Returns the mean of (a_i · b_j)^2 over examples and pairs of channels of a and b [batch, positions, channels]."""
    return jnp.mean(jnp.einsum("bpi,bpj->bij", a, b, precision="highest") ** 2)


def ickd(student_features: Array, teacher_features: Array) -> Array:
    """Computes ICKD-C, the squared difference of the correlations between the channels of one pair of feature maps.

    The correlations of an example are F F^T over positions, [channels, channels], with L2-normalised rows. The maps may
    differ in size.

    Args:
      student_features: Student map [batch, height, width, channels], with the teacher's number of channels.
      teacher_features: Teacher map [batch, height, width, channels].

    Returns:
      Mean over examples and rows of the sum over columns [], in [0, 4].

    Raises:
      ValueError: The numbers of channels differ.

    References:
      Liu et al., 2021, "Exploring Inter-Channel Correlation for Diversity-preserved
      Knowledge Distillation", https://arxiv.org/abs/2202.03680
    """
    (pair,) = check_same_shape([as_pair(student_features, teacher_features)], axes=(3,))
    student, teacher = (_channel_correlations(x) for x in pair)
    return jnp.mean(jnp.sum((student - teacher) ** 2, axis=-1))


def _channel_correlations(x: Array) -> Array:
    """Returns the products of the channels of x [batch, height, width, channels], with rows of norm 1."""
    flat = x.reshape(x.shape[0], -1, x.shape[-1])
    return normalized(jnp.einsum("bpi,bpj->bij", flat, flat, precision="highest"))


def fsp(student_features: Maps, teacher_features: Maps) -> Array:
    """Computes the flow-of-solution-procedure loss, the squared difference of Gram matrices of successive maps.

    Args:
      student_features: Student stem and stages [batch, height, width, channels], at least two maps, with the teacher's
        numbers of channels.
      teacher_features: Teacher stem and stages [batch, height, width, channels], one for each student map.

    Returns:
      Sum over successive pairs of stages of the means over examples and channels [], at least 0.

    Raises:
      ValueError: The lists do not pair up, there are fewer than two maps, or numbers of channels differ.

    References:
      Yim, Joo, Bae & Kim, 2017, "A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and
      Transfer Learning", CVPR 2017.
    """
    pairs = check_same_shape(as_pairs(student_features, teacher_features), (3,))
    if len(pairs) < 2:
        raise ValueError(f"fsp needs at least two maps, not {len(pairs)}.")
    terms = []
    for (student, teacher), (next_student, next_teacher) in zip(pairs, pairs[1:]):
        terms.append(jnp.mean((_flow(student, next_student) - _flow(teacher, next_teacher)) ** 2))
    return add_up(terms)


def _flow(bottom: Array, top: Array) -> Array:
    """Returns the mean over positions of the products of top and bottom channels [batch, top, bottom]."""
    bottom, top = same_size(bottom, top)
    positions = bottom.shape[1] * bottom.shape[2]
    return jnp.einsum("bhwi,bhwj->bij", top, bottom, precision="highest") / positions


def factor_transfer(student_features: Array, teacher_features: Array, *, p1: float = 2.0, p2: float = 1.0) -> Array:
    """Computes the factor-transfer loss, the distance of the L2-normalised maps mean_c |f_c|^p1 of two factors.

    Args:
      student_features: The student's factor [batch, height, width, channels], from the translator.
      teacher_features: The teacher's factor [batch, height, width, channels], from the paraphraser.
      p1: Power of the factors before the mean over channels, above 0.
      p2: Power of the absolute difference before its mean, above 0; 1 is the mean absolute difference.

    Returns:
      Mean over positions and examples [], at least 0.

    Raises:
      ValueError: The arguments are not a pair of maps.

    References:
      Kim, Park & Kwak, 2018, "Paraphrasing Complex Network: Network Compression via Factor Transfer", eq. 3,
      https://arxiv.org/abs/1802.04977
    """
    student, teacher = (_attention_map(f, p1) for f in same_size(*as_pair(student_features, teacher_features)))
    difference = student - teacher
    difference = difference * jnp.sign(difference)  # |x| with derivative 0 at 0, as in PyTorch; jnp.abs has 1 there
    return jnp.mean(difference if isinstance(p2, int | float) and p2 == 1 else _power(difference, p2))


def paraphrase(student_features: Array, teacher_features: Array) -> Array:
    """Computes a paraphraser's mean squared error in reconstructing the teacher's map, for its training.

    Args:
      student_features: The paraphraser's reconstruction [batch, height, width, channels].
      teacher_features: Teacher map [batch, height, width, channels] to reconstruct.

    Returns:
      Mean over all elements [], at least 0.

    Raises:
      ValueError: The shapes differ.

    References:
      Kim, Park & Kwak, 2018, "Paraphrasing Complex Network: Network Compression via Factor Transfer", eq. 1,
      https://arxiv.org/abs/1802.04977
    """
    return hint(student_features, teacher_features)


def activation_boundary(student_features: Maps, teacher_features: Maps, *, margin: float = 1.0) -> Array:
    """Computes the activation-boundary loss, a squared hinge that moves each activation to the teacher's side of 0.

    Args:
      student_features: Student maps before their ReLU [batch, height, width, channels], already mapped by connectors
        to the teacher's shapes.
      teacher_features: Teacher maps before their ReLU [batch, height, width, channels].
      margin: Distance from 0, above 0, beyond which a student activation on the right side costs nothing.

    Returns:
      Sum over stages i = 1, ..., n, weighted by 2^(i - n), of the sums over positions and channels, times
      3 / (1000 batch) [], at least 0.

    Raises:
      ValueError: The lists do not pair up, or shapes differ.

    References:
      Heo, Lee, Yun & Choi, 2019, "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden
      Neurons", https://arxiv.org/abs/1811.03233
    """
    pairs, terms = check_same_shape(as_pairs(student_features, teacher_features)), []
    for i, (student, teacher) in enumerate(pairs, start=1):
        below = (student + margin) ** 2 * ((student > -margin) & (teacher <= 0))
        above = (student - margin) ** 2 * ((student <= margin) & (teacher > 0))
        terms.append(2.0 ** (i - len(pairs)) * jnp.sum(below + above) * 3 / (1000 * student.shape[0]))
    return add_up(terms)


def vid(student_features: Maps, teacher_features: Maps, variances: Sequence[Array]) -> Array:
    """Computes the variational-information loss, the Gaussian negative log-likelihood of the teacher's maps.

    Args:
      student_features: Means of the Gaussians that regressors predict from the student's maps
        [batch, height, width, channels], of the teacher's shapes.
      teacher_features: Teacher maps [batch, height, width, channels]. Where sizes differ, the larger map is averaged
        down before the regressor.
      variances: Variances [channels] of each stage, above 0.

    Returns:
      Sum over stages of the mean of ((mean - teacher)^2 / variance + log variance) / 2 []; the constant
      log(2 pi) / 2 is left out.

    Raises:
      ValueError: The lists do not pair up, or shapes differ.

    References:
      Ahn, Hu, Damianou, Lawrence & Dai, 2019, "Variational Information Distillation for Knowledge Transfer",
      https://arxiv.org/abs/1904.05835
    """
    pairs = check_same_shape(as_pairs(student_features, teacher_features))
    variances = _of_channels("variances", variances, pairs)
    terms = [
        jnp.mean(0.5 * ((mean - teacher) ** 2 / variance + jnp.log(variance)))
        for (mean, teacher), variance in zip(pairs, variances, strict=True)
    ]
    return add_up(terms)


def review(student_features: Maps, teacher_features: Maps) -> Array:
    """Computes ReviewKD's hierarchical context loss, squared differences at full size and averaged to 4, 2 and 1.

    Args:
      student_features: Fused student maps [batch, height, width, channels], of the teacher's shapes.
      teacher_features: Teacher maps [batch, height, width, channels]; the pooled vector may come last, as
        [batch, 1, 1, channels].

    Returns:
      Sum over stages of a weighted mean of mean squared differences [], at least 0. The levels full size, 4, 2 and 1
      have the weights 1, 1/2, 1/4 and 1/8; a level that is not below the map's height is left out.

    Raises:
      ValueError: The lists do not pair up, or shapes differ.

    References:
      Chen, Liu, Zhao & Jia, 2021, "Distilling Knowledge via Knowledge Review", https://arxiv.org/abs/2104.09044
    """
    terms = []
    for student, teacher in check_same_shape(as_pairs(student_features, teacher_features)):
        stage, weight, weights = jnp.mean((student - teacher) ** 2), 1.0, 1.0
        for level in (4, 2, 1):
            if level < student.shape[1]:
                weight /= 2
                weights += weight
                stage += weight * jnp.mean(adaptive_avg_pool(student - teacher, (level, level)) ** 2)
        terms.append(stage / weights)
    return add_up(terms)


def ofd(student_features: Maps, teacher_features: Maps, margins: Sequence[Array]) -> Array:
    """Computes the overhaul loss, a partial squared distance to max(teacher, margin), the teacher's margin ReLU.

    Where the target is negative, a student activation that is already below it costs nothing.

    Args:
      student_features: Student maps before their ReLU [batch, height, width, channels], already mapped by connectors
        to the teacher's shapes.
      teacher_features: Teacher maps before their ReLU [batch, height, width, channels], averaged down to the student's
        sizes.
      margins: Margins [channels] of each stage, below 0; see `ofd_margins`.

    Returns:
      Sum over stages i = 1, ..., n, weighted by 2^(i - n), of the sums over positions and channels, averaged over the
      batch [], at least 0.

    Raises:
      ValueError: The lists do not pair up, or shapes differ.

    References:
      Heo, Kim, Yun, Park, Kwak & Choi, 2019, "A Comprehensive Overhaul of Feature Distillation", eq. 5,
      https://arxiv.org/abs/1904.01866
    """
    pairs, terms = check_same_shape(as_pairs(student_features, teacher_features)), []
    margins = _of_channels("margins", margins, pairs)
    for i, ((student, teacher), margin) in enumerate(zip(pairs, margins, strict=True), start=1):
        to_margin = (student > margin) & (teacher <= margin)
        to_teacher = ((student > teacher) & (teacher > margin) & (teacher <= 0)) | (teacher > 0)
        target = jnp.where(to_teacher, teacher, margin)
        distance = jnp.where(to_margin | to_teacher, (student - target) ** 2, 0.0)
        terms.append(2.0 ** (i - len(pairs)) * jnp.sum(distance) / student.shape[0])
    return add_up(terms)


def _of_channels(name: str, vectors: Sequence[Array], pairs: list[Pair]) -> list[Array]:
    """Returns one vector [channels] for each pair of maps.

    Raises:
      ValueError: There are more or fewer vectors than pairs, or one does not have its teacher map's channels.
    """
    if len(vectors) != len(pairs):
        raise ValueError(f"{name} has {len(vectors)} entries for {len(pairs)} stages.")
    checked = [as_float(vector) for vector in vectors]
    for stage, (vector, (_, teacher)) in enumerate(zip(checked, pairs, strict=True), start=1):
        if vector.shape != teacher.shape[3:]:
            raise ValueError(f"stage {stage}: {name} {list(vector.shape)} beside maps {list(teacher.shape)}.")
    return checked


def ofd_margins(scale: Array, bias: Array) -> Array:
    """Returns the mean of the negative part of a BatchNorm's output, the margins of `ofd`.

    The output of a channel is taken to be normal, N(bias, scale^2). With φ and Φ the standard normal's density and
    distribution function, its mean below 0 is bias - |scale| φ(bias / scale) / Φ(-bias / |scale|).

    Args:
      scale: Scale [channels] of the last BatchNorm before the teacher's ReLU, of any sign.
      bias: Bias [channels] of the same BatchNorm.

    Returns:
      Margins [channels], at most 0. Where Φ(-bias / |scale|) is 0.001 or less, the quotient is unreliable and the
      margin is -3 |scale|, as in the paper's code.

    References:
      Heo, Kim, Yun, Park, Kwak & Choi, 2019, "A Comprehensive Overhaul of Feature Distillation", eq. 4,
      https://arxiv.org/abs/1904.01866
    """
    scale = jnp.abs(scale)
    ratio = bias / jnp.where(scale > 0, scale, 1.0)  # a scale of 0 makes the channel constant, equal to its bias
    share = jnp.where(scale > 0, norm.cdf(-ratio), bias < 0)
    margin = bias - scale * norm.pdf(ratio) / jnp.where(share > 0.001, share, 1.0)
    return jnp.where(share > 0.001, margin, -3 * scale)

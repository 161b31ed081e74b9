"""Adapters: the trainable layers that some losses need between a network's maps and their own arguments.

An adapter takes the arguments that the networks offer a loss, by name, and returns those that the loss takes. Its
parameters are optimised with the student, and its statistics and memories are carried in the train state; neither is
ever exported. Initial values follow PyTorch's defaults, as in the papers' code.
"""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kdjax import losses
from kdjax.data import Dataset
from kdjax.distillation.inputs import Head
from kdjax.losses._maps import same_size
from kdjax.models.initialize import TORCH_INITIALIZERS, kaiming_normal_fan_out, torch_transposed
from kdjax.models.layers import batch_norm, conv1x1, conv3x3, depthwise3x3, spatial_mean
from kdjax.types import Array

Arguments = Mapping[str, Any]  # argument of a loss -> value


class Adapter(nn.Module):
    """The base class of all adapters.

    Attributes:
      train: Whether BatchNorm uses batch statistics and updates the running ones.
      warming_up: Whether the phase is the warm-up that some methods begin with.
    """

    train: bool = True
    warming_up: bool = False

    INITIALIZERS = ((r".*(transposed|paraphraser_decoder/conv\d)/(kernel|bias)", torch_transposed), *TORCH_INITIALIZERS)

    def first_memory(self, seed: int, dataset: Dataset | None) -> dict[str, np.ndarray]:
        """Returns the adapter's memory before the first step, {} for an adapter without one.

        Args:
          seed: Integer in [0, 2^32), the adapter's own.
          dataset: The data that the student is trained on.
        """
        del seed, dataset
        return {}


class Regressor(nn.Module):
    """One convolution to the teacher's width and size, BatchNorm, and optionally a ReLU.

    Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015.

    Attributes:
      shape: Shape of the teacher's map, [batch, height, width, channels].
      relu: Whether a ReLU follows.
      train: Whether BatchNorm uses batch statistics.
    """

    shape: tuple[int, ...]
    relu: bool
    train: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns [batch, teacher's height, teacher's width, teacher's channels].

        Raises:
          ValueError: The teacher's map is larger than the student's and not exactly twice as large.
        """
        (height, width), (to_height, to_width), channels = x.shape[1:3], self.shape[1:3], self.shape[3]
        if height == 2 * to_height:
            x = nn.Conv(channels, (3, 3), strides=2, padding=1, name="conv")(x)
        elif 2 * height == to_height:  # flax pads the dilated input by 2 where PyTorch crops the output by 1
            x = nn.ConvTranspose(channels, (4, 4), strides=(2, 2), padding=((2, 2), (2, 2)), name="transposed")(x)
        elif height >= to_height and width >= to_width:
            size = (1 + height - to_height, 1 + width - to_width)
            x = nn.Conv(channels, size, padding="VALID", name="conv")(x)
        else:
            raise ValueError(f"no regressor leads from {list(x.shape)} to {list(self.shape)}: name another stage.")
        x = batch_norm(None, self.train)(name="bn")(x)
        return nn.relu(x) if self.relu else x


class Hint(Adapter):
    """Regresses the student's map to the teacher's: FitNet's hint (Romero et al. 2015)."""

    @nn.compact
    def __call__(self, given: Arguments) -> dict:
        """Returns the pair of maps, both of the teacher's shape."""
        student, teacher = given["student_features"], given["teacher_features"]
        return {
            "student_features": Regressor(teacher.shape, True, self.train, name="regressor")(student),
            "teacher_features": teacher,
        }


class Connectors(Adapter):
    """Regresses, without a ReLU, every map whose shape differs from the teacher's.

    Heo et al., "Knowledge Transfer via Distillation of Activation Boundaries", AAAI 2019.
    """

    @nn.compact
    def __call__(self, given: Arguments) -> dict:
        """Returns the maps of both networks, those of a pair of one shape."""
        connected = []
        for i, (student, teacher) in enumerate(zip(given["student_features"], given["teacher_features"], strict=True)):
            same = student.shape == teacher.shape
            regressor = Regressor(teacher.shape, False, self.train, name=f"connector{i + 1}")
            connected.append(student if same else regressor(student))
        return {"student_features": tuple(connected), "teacher_features": given["teacher_features"]}


class ChannelProjection(Adapter):
    """A 1x1 convolution and BatchNorm from the student's map to the teacher's width, for ICKD (Liu et al. 2021)."""

    @nn.compact
    def __call__(self, given: Arguments) -> dict:
        """Returns the pair of maps, of equal numbers of channels."""
        student, teacher = given["student_features"], given["teacher_features"]
        x = conv1x1(teacher.shape[-1], name="projection_conv")(student)
        connected = batch_norm(None, self.train)(name="projection_bn")(x)
        return {"student_features": connected, "teacher_features": teacher}


class ThroughTeacher(Adapter):
    """A 1x1 convolution, BatchNorm and ReLU to the teacher's width, and the teacher's frozen classifier after the mean.

    Yang, Martinez, Bulat & Tzimiropoulos, "Knowledge Distillation via Softmax Regression Representation Learning"
    (SRRL), ICLR 2021.
    """

    @nn.compact
    def __call__(self, given: Arguments) -> dict:
        """Returns the pair of maps, of equal numbers of channels, and the teacher's logits of the student's map."""
        student, teacher = given["student_features"], given["teacher_features"]
        x = conv1x1(teacher.shape[-1], name="connector_conv")(student)
        connected = nn.relu(batch_norm(None, self.train)(name="connector_bn")(x))
        return {
            "student_features": connected,
            "teacher_features": teacher,
            "crossed_logits": classify(spatial_mean(connected), given["teacher_head"]),
        }


class Regions(Adapter):
    """Both networks' logits of the regions of their last maps, each by its own classifier.

    Wei, Luo & Luo, "Scaled Decoupled Distillation" (SDD), CVPR 2024.

    Attributes:
      levels: Number of grids of regions: 1x1, then 2x2, then 4x4.
    """

    levels: int = 2

    @nn.compact
    def __call__(self, given: Arguments) -> dict:
        """Returns the logits of both networks, [batch, regions, classes]; the first region is the whole map."""
        sides = ("student", "teacher")
        return {f"{side}_regions": self._logits(given[f"{side}_features"], given[f"{side}_head"]) for side in sides}

    def _logits(self, x: Array, head: Head) -> Array:
        cells = losses.adaptive_avg_pool(x, (4, 4))  # the regions are unions of these
        grids = [losses.adaptive_avg_pool(cells, (side, side)) for side in (1, 2, 4)[: self.levels]]
        return classify(jnp.concatenate([grid.reshape(x.shape[0], -1, x.shape[-1]) for grid in grids], axis=1), head)


class ClassMaps(Adapter):
    """Both networks' class activation maps: their classifiers at every position of their last maps.

    Guo, Yan, Li & Lin, "Class Attention Transfer Based Knowledge Distillation" (CAT-KD), CVPR 2023.
    """

    @nn.compact
    def __call__(self, given: Arguments) -> dict:
        """Returns the maps of both networks, [batch, height, width, classes]."""
        sides = ("student", "teacher")
        return {f"{side}_class_maps": classify(given[f"{side}_features"], given[f"{side}_head"]) for side in sides}


def classify(x: Array, head: Head) -> Array:
    """Returns the logits [..., classes] that a linear classifier gives vectors [..., dim]."""
    kernel, bias = head
    return jnp.matmul(x, kernel, precision="highest") + bias


class StageHeads(Adapter):
    """A head on each of the student's stages: separable convolutions of stride 2, the mean, a linear classifier.

    A stage gets one convolution for each stage after it; each halves the map and doubles its channels. So does the
    patch grid of a transformer.

    Hao et al., "One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation" (OFA-KD),
    NeurIPS 2023. The layers of its code are not known to kdjax.
    """

    @nn.compact
    def __call__(self, given: Arguments) -> dict:
        """Returns the logits of every stage, each [batch, classes]; () for a student without maps."""
        maps, classes = given["student_stages"], given["teacher_logits"].shape[-1]
        norm, found = batch_norm(None, self.train), []
        for stage, x in enumerate(maps, start=1):
            for step in range(1, len(maps) - stage + 1):
                name = f"stage{stage}_{step}"
                x = depthwise3x3(x.shape[-1], strides=2, name=f"{name}_depthwise")(x)
                x = conv1x1(2 * x.shape[-1], name=f"{name}_conv")(x)
                x = nn.relu(norm(name=f"{name}_bn")(x))
            found.append(nn.Dense(classes, name=f"stage{stage}_fc")(spatial_mean(x)))
        return {"stage_logits": tuple(found)}


class CurriculumTemperature(Adapter):
    """One temperature, low + span sigmoid(position), whose gradient is turned round.

    Li et al., "Curriculum Temperature for Knowledge Distillation" (CTKD), AAAI 2023.

    Attributes:
      low: Lower bound of the temperature.
      span: Its upper bound minus the lower one.
      first: Initial value of the trained position.
      epochs: Epochs in which the reversal rises from 0 to 1; in the first epoch it is 0, and the temperature is fixed.
    """

    low: float = 1.0
    span: float = 20.0
    first: float = 1.0
    epochs: float = 10.0

    @property
    def INITIALIZERS(self) -> tuple:  # pyright: ignore[reportIncompatibleVariableOverride]  depends on a field
        """Returns the initializer of the position."""
        return ((r"position", lambda generator, shape, kernel: np.full(shape, self.first)),)

    @nn.compact
    def __call__(self, given: Arguments) -> dict:
        """Returns the temperature []."""
        position = self.param("position", nn.initializers.zeros, ())
        turned = losses.reversed_gradient(position, losses.reversal_strength(given["epoch"], self.epochs))
        return {"learned_temperature": self.low + self.span * nn.sigmoid(turned)}


class WidthConnectors(Adapter):
    """A 1x1 convolution and BatchNorm to the teacher's width; the teacher's map is pooled to the student's size.

    Heo et al., "A Comprehensive Overhaul of Feature Distillation" (OFD), ICCV 2019.
    """

    INITIALIZERS = ((r".*conv/kernel", kaiming_normal_fan_out), *TORCH_INITIALIZERS)

    @nn.compact
    def __call__(self, given: Arguments) -> dict:
        """Returns the maps of both networks, those of a pair of one shape, and the margins."""
        connected, pooled = [], []
        for i, (student, teacher) in enumerate(zip(given["student_features"], given["teacher_features"], strict=True)):
            x = conv1x1(teacher.shape[-1], name=f"connector{i + 1}_conv")(student)
            connected.append(batch_norm(None, self.train)(name=f"connector{i + 1}_bn")(x))
            pooled.append(losses.adaptive_avg_pool(teacher, student.shape[1:3]))
        return {"student_features": tuple(connected), "teacher_features": tuple(pooled), "margins": given["margins"]}


class Variational(Adapter):
    """Predicts the teacher's maps by three 1x1 convolutions, with one variance for each channel.

    Ahn et al., "Variational Information Distillation for Knowledge Transfer" (VID), CVPR 2019.

    Attributes:
      first_variance: Initial value of the variances.
      least_variance: Lower bound of the variances.
    """

    first_variance: float = 5.0
    least_variance: float = 1e-5

    @property
    def INITIALIZERS(self) -> tuple:  # pyright: ignore[reportIncompatibleVariableOverride]  depends on a field
        """Returns PyTorch's defaults, and an initializer of the variances."""
        first = math.log(math.expm1(self.first_variance - self.least_variance))
        return ((r"rho\d+", lambda generator, shape, kernel: np.full(shape, first)), *TORCH_INITIALIZERS)

    @nn.compact
    def __call__(self, given: Arguments) -> dict:
        """Returns the predicted means, the teacher's maps (pooled to the smaller size of each pair), and variances."""
        means, maps, variances = [], [], []
        for i, (student, teacher) in enumerate(zip(given["student_features"], given["teacher_features"], strict=True)):
            student, teacher = same_size(student, teacher)
            channels = teacher.shape[-1]
            x = nn.relu(conv1x1(channels, name=f"regressor{i + 1}_conv1")(student))
            x = nn.relu(conv1x1(channels, name=f"regressor{i + 1}_conv2")(x))
            means.append(conv1x1(channels, name=f"regressor{i + 1}_conv3")(x))
            maps.append(teacher)
            rho = self.param(f"rho{i + 1}", nn.initializers.zeros, (channels,))
            variances.append(jax.nn.softplus(rho) + self.least_variance)
        return {
            "student_features": tuple(means),
            "teacher_features": tuple(maps),
            "variances": tuple(variances),
        }


class Encoder(nn.Module):
    """3x3 convolutions, each followed by an optional BatchNorm and a LeakyReLU (Kim et al. 2018).

    Attributes:
      widths: Channels after each convolution.
      norm: Whether BatchNorm is used.
      train: Whether BatchNorm uses batch statistics.
    """

    widths: tuple[int, ...]
    norm: bool
    train: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns [batch, height, width, widths[-1]]."""
        for i, width in enumerate(self.widths, start=1):
            x = conv3x3(width, use_bias=True, name=f"conv{i}")(x)
            x = batch_norm(None, self.train)(name=f"bn{i}")(x) if self.norm else x
            x = nn.leaky_relu(x, 0.1)
        return x


class Factors(Adapter):
    """The teacher's paraphraser, which the warm-up trains and training proper freezes, and the student's translator.

    Kim et al., "Paraphrasing Complex Network: Network Compression via Factor Transfer", NeurIPS 2018.

    Attributes:
      rate: Channels of a factor, as a fraction of the teacher's channels.
    """

    rate: float = 0.5

    @nn.compact
    def __call__(self, given: Arguments) -> dict:
        """Returns the factors of both networks; in the warm-up the teacher's map and its reconstruction."""
        student, teacher = given["student_features"], given["teacher_features"]
        wide, narrow = teacher.shape[-1], int(teacher.shape[-1] * self.rate)
        paraphraser = Encoder((wide, narrow, narrow), False, self.train, name="paraphraser")
        # A transposed 3x3 convolution of stride 1 is a convolution: its kernel is the mirrored one.
        decoder = Encoder((narrow, wide, wide), False, self.train, name="paraphraser_decoder")
        translator = Encoder((student.shape[-1], narrow, narrow), True, self.train, name="translator")
        factor, translated = paraphraser(teacher), translator(student)
        restored = decoder(factor)
        if self.warming_up:
            return {"student_features": restored, "teacher_features": teacher}
        return {"student_features": translated, "teacher_features": jax.lax.stop_gradient(factor)}


class Fusion(nn.Module):
    """Fuses a stage of the student with the fusion of the deeper stages, by attention.

    Chen et al., "Distilling Knowledge via Knowledge Review" (ReviewKD), CVPR 2021.

    Attributes:
      middle: Channels of the fused map.
      channels: Channels of the teacher's map.
      size: Height and width of the teacher's map.
      train: Whether BatchNorm uses batch statistics.
    """

    middle: int
    channels: int
    size: tuple[int, int]
    train: bool

    @nn.compact
    def __call__(self, x: Array, deeper: Array | None) -> tuple[Array, Array]:
        """Returns the map to compare with the teacher's, and the map that the next shallower stage fuses with."""
        norm = batch_norm(None, self.train)
        x = norm(name="bn1")(conv1x1(self.middle, name="conv1")(x))
        if deeper is not None:
            below = _nearest(deeper, x.shape[1:3])
            weights = nn.sigmoid(nn.Conv(2, (1, 1), name="attention")(jnp.concatenate([x, below], axis=-1)))
            x = x * weights[..., :1] + below * weights[..., 1:]
        x = _nearest(x, self.size)
        return norm(name="bn2")(conv3x3(self.channels, name="conv2")(x)), x


def _nearest(x: Array, size: tuple[int, int]) -> Array:
    """Resizes as PyTorch does in mode 'nearest': output pixel i reads input pixel floor(i * input / output)."""
    rows, columns = (np.arange(after) * before // after for before, after in zip(x.shape[1:3], size, strict=True))
    return x if x.shape[1:3] == tuple(size) else x[:, rows][:, :, columns]


def kaiming_uniform_1(generator: np.random.Generator, shape: Any, kernel: Any) -> np.ndarray:
    """Draws uniformly within ±√(3 / fan_in): PyTorch's kaiming_uniform_ with a = 1."""
    del kernel
    bound = math.sqrt(3 / math.prod(shape[:-1]))
    return generator.uniform(-bound, bound, shape)


class Review(Adapter):
    """Fuses the student's stages from the deepest to the shallowest; the pooled vectors are maps of one pixel.

    Chen et al., "Distilling Knowledge via Knowledge Review" (ReviewKD), CVPR 2021.
    """

    INITIALIZERS = ((r".*/conv\d/kernel", kaiming_uniform_1), *TORCH_INITIALIZERS)

    @nn.compact
    def __call__(self, given: Arguments) -> dict:
        """Returns the fused maps from shallow to deep, each of the shape of the teacher's map."""
        pairs = list(zip(given["student_features"], given["teacher_features"], strict=True))
        middle, deeper, fused = min(512, pairs[-1][0].shape[-1]), None, []
        for i, (student, teacher) in reversed(list(enumerate(pairs))):
            fusion = Fusion(middle, teacher.shape[-1], teacher.shape[1:3], self.train, name=f"fusion{i + 1}")
            out, deeper = fusion(student, deeper)
            fused.insert(0, out)
        return {"student_features": tuple(fused), "teacher_features": given["teacher_features"]}


class Embeddings(Adapter):
    """A linear embedding of each network's vector.

    Peng et al., "Correlation Congruence for Knowledge Distillation" (CC), ICCV 2019.

    Attributes:
      dim: Dimension of the embeddings.
    """

    dim: int = 128

    @nn.compact
    def __call__(self, given: Arguments) -> dict:
        """Returns the embeddings [batch, dim]."""
        return {
            side: nn.Dense(self.dim, name=side.partition("_")[0])(given[side])
            for side in ("student_embeddings", "teacher_embeddings")
        }


class Projection(Adapter):
    """A linear map of the student's vector to the teacher's width.

    Miles et al., "Information Theoretic Representation Distillation" (ITRD), BMVC 2022.
    """

    @nn.compact
    def __call__(self, given: Arguments) -> dict:
        """Returns both vectors (the student's projected if their widths differ) and the student's projected vector."""
        student, teacher = given["student_embeddings"], given["teacher_embeddings"]
        projected = nn.Dense(teacher.shape[-1], name="projection")(student)
        return {
            "student_embeddings": student if student.shape == teacher.shape else projected,
            "teacher_embeddings": teacher,
            "student_projections": projected,
        }

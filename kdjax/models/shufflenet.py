"""ShuffleNets V1 and V2 for small images: a 1x1 stem without pooling instead of the papers' stem of stride 4.

References: Zhang, Zhou, Lin & Sun, 2018, "ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile
Devices", https://arxiv.org/abs/1707.01083; Ma, Zhang, Zheng & Sun, 2018, "ShuffleNet V2: Practical Guidelines for
Efficient CNN Architecture Design", https://arxiv.org/abs/1807.11164
"""

import flax.linen as nn
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax.typing import DTypeLike

from kdjax.errors import UserError
from kdjax.models.initialize import ones, torch_linear, zeros
from kdjax.models.layers import batch_norm, check_images, conv1x1, depthwise3x3, spatial_mean
from kdjax.types import Array, ModelOutput

STEM_WIDTH = 24

# RepDistiller's code for small images leaves all layers to PyTorch's defaults.
INITIALIZERS = (
    (r"(.*/)?(stem|conv\d|last|fc)/(kernel|bias)", torch_linear),
    (r".*bn\d?/(scale|var)", ones),
    (r".*bn\d?/(bias|mean)", zeros),
)
TORCH_NAMES = {
    "repdistiller": (
        (r"stem", "conv1"),
        (r"stem_bn", "bn1"),
        (r"stage(\d)_block(\d+)/((?:conv|bn)\d)", lambda stage, block, layer: f"layer{stage}.{block - 1}.{layer}"),
        (r"last", "conv2"),
        (r"last_bn", "bn2"),
        (r"fc", "linear"),
    ),
}


def shuffle(x: Array, groups: int) -> Array:
    """Interleaves groups of channels: with 2 groups of 3, channels 0 1 2 3 4 5 become 0 3 1 4 2 5."""
    grouped = x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups)
    return jnp.swapaxes(grouped, -1, -2).reshape(x.shape)


class Grouped1x1(nn.Module):
    """A 1x1 convolution of each group of channels separately, without bias.

    It is computed as one matrix product a group: on CPUs, XLA runs a grouped convolution and its gradient 2 to 7 times
    slower.

    Attributes:
      width: Number of output channels.
      groups: Number of groups, which divides the numbers of input and output channels.
      dtype: Type of the computation; None takes that of parameters and input.
    """

    width: int
    groups: int
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns [batch, height, width, width]; the kernel [1, 1, in / groups, width] is that of a convolution."""
        inside, width = x.shape[-1] // self.groups, self.width // self.groups
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (1, 1, inside, self.width))
        x, kernel = promote_dtype(x, kernel, dtype=self.dtype)
        grouped, kernel = x.reshape(-1, self.groups, inside), kernel.reshape(inside, self.groups, width)
        return jnp.einsum("ngi,igo->ngo", grouped, kernel).reshape(*x.shape[:-1], self.width)


class GroupedBlock(nn.Module):
    """ShuffleNet V1's unit: grouped 1x1 convolution, shuffle, depthwise 3x3 convolution, grouped 1x1 convolution.

    At stride 1 the input is added; at stride 2 the pooled input is concatenated.

    Attributes:
      width: Number of output channels, those of a concatenated shortcut included.
      stride: 1 or 2.
      groups: Number of groups of the 1x1 convolutions.
      dtype: Type of the computation; None takes that of parameters and input.
    """

    width: int
    stride: int
    groups: int
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Returns [batch, height / stride, width / stride, channels], before its ReLU."""
        norm = batch_norm(self.dtype, train)
        width = self.width - x.shape[-1] if self.stride == 2 else self.width
        groups = 1 if x.shape[-1] == STEM_WIDTH else self.groups  # the unit after the stem is not grouped at first
        y = Grouped1x1(width // 4, groups, self.dtype, name="conv1")(x)
        y = shuffle(nn.relu(norm(name="bn1")(y)), groups)
        y = depthwise3x3(width // 4, strides=self.stride, dtype=self.dtype, name="conv2")(y)
        y = nn.relu(norm(name="bn2")(y))
        y = Grouped1x1(width, self.groups, self.dtype, name="conv3")(y)
        y = norm(name="bn3")(y)
        if self.stride == 1:
            return y + x
        pooled = nn.avg_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))  # padded zeros count, as in PyTorch
        return jnp.concatenate([y, pooled], axis=-1)


class ShuffleNetV1(nn.Module):
    """A 1x1 stem of 24 channels, three stages of grouped units, the mean over positions, a linear classifier.

    Layers, parameter counts and (by TORCH_NAMES) parameter names are those of RepDistiller and mdistiller.

    Initialisation by `init_variables`: all weights and the classifier's bias uniform in ±1/√fan_in, PyTorch's default;
    BatchNorm scale 1 and bias 0.

    Attributes:
      num_classes: Number of classes.
      groups: Number of groups of the 1x1 convolutions.
      widths: Numbers of channels of the stages.
      repeats: Numbers of units of the stages.
      dtype: Type of the body's computation; None takes that of parameters and images. The mean and the classifier are
        float32 or wider.
    """

    num_classes: int
    groups: int = 3
    widths: tuple[int, ...] = (240, 480, 960)
    repeats: tuple[int, ...] = (4, 8, 4)
    dtype: DTypeLike | None = None

    INITIALIZERS = INITIALIZERS
    TORCH_NAMES = TORCH_NAMES

    def __post_init__(self):
        _check_stages("shufflenetv1", self.widths, self.repeats)
        if not isinstance(self.groups, int) or self.groups < 1:
            raise UserError(f"shufflenetv1: groups must be a whole number of at least 1, not {self.groups!r}.")
        before = (STEM_WIDTH, *self.widths)
        if not all(_divides(self.groups, *stage) for stage in zip(before, self.widths, self.repeats)):
            raise UserError(
                f"shufflenetv1: widths {self.widths} cannot be split into {self.groups} groups at every layer; "
                "(240, 480, 960) can be split into 3."
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> ModelOutput:
        """Returns logits, the feature maps of stem and stages, and the pooled vector.

        Args:
          images: Images [batch, height, width, channels], floating-point, of any size.
          train: Whether to normalise by the batch's statistics instead of the running ones.

        Returns:
          logits [batch, classes]; features stem, stage1, stage2, stage3 [batch, height, width, channels] after ReLU,
          and before ReLU as stem_preact, ...; pooled [batch, channels], the mean of the last stage.
        """
        check_images(images, "a shufflenetv1")
        x, features = _stem(images, self.dtype, train)
        for stage, (width, repeats) in enumerate(zip(self.widths, self.repeats, strict=True), start=1):
            preact = x
            for block in range(1, repeats + 1):
                name = f"stage{stage}_block{block}"
                preact = GroupedBlock(width, 2 if block == 1 else 1, self.groups, self.dtype, name=name)(x, train)
                x = nn.relu(preact)
            features |= {f"stage{stage}": x, f"stage{stage}_preact": preact}
        pooled = spatial_mean(x)
        logits = nn.Dense(self.num_classes, name="fc")(pooled)
        return ModelOutput(logits, features, pooled)

    def preact_norms(self) -> dict[str, str]:
        """Returns {}, since a stage's pre-activation is a sum of outputs of several BatchNorm layers."""
        return {}


class SplitBlock(nn.Module):
    """ShuffleNet V2's unit of stride 1: half of the channels pass through three convolutions, the other half do not.

    Attributes:
      dtype: Type of the computation; None takes that of parameters and input.
    """

    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> tuple[Array, Array]:
        """Returns the shuffled output, and the output before the last ReLU and the shuffle, of the input's shape."""
        norm, half = batch_norm(self.dtype, train), x.shape[-1] // 2
        bypass, y = x[..., :half], x[..., half:]
        width = x.shape[-1] - half
        y = nn.relu(norm(name="bn1")(conv1x1(width, dtype=self.dtype, name="conv1")(y)))
        y = norm(name="bn2")(depthwise3x3(width, dtype=self.dtype, name="conv2")(y))
        y = norm(name="bn3")(conv1x1(width, dtype=self.dtype, name="conv3")(y))
        out, preact = (jnp.concatenate([bypass, part], axis=-1) for part in (nn.relu(y), y))
        return shuffle(out, 2), preact


class DownBlock(nn.Module):
    """ShuffleNet V2's unit of stride 2: each half of the output is computed from the whole input.

    Attributes:
      width: Number of output channels.
      dtype: Type of the computation; None takes that of parameters and input.
    """

    width: int
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Returns [batch, height / 2, width / 2, channels], shuffled."""
        norm, half = batch_norm(self.dtype, train), self.width // 2
        left = norm(name="bn1")(depthwise3x3(x.shape[-1], strides=2, dtype=self.dtype, name="conv1")(x))
        left = nn.relu(norm(name="bn2")(conv1x1(half, dtype=self.dtype, name="conv2")(left)))
        right = nn.relu(norm(name="bn3")(conv1x1(half, dtype=self.dtype, name="conv3")(x)))
        right = norm(name="bn4")(depthwise3x3(half, strides=2, dtype=self.dtype, name="conv4")(right))
        right = nn.relu(norm(name="bn5")(conv1x1(half, dtype=self.dtype, name="conv5")(right)))
        return shuffle(jnp.concatenate([left, right], axis=-1), 2)


class ShuffleNetV2(nn.Module):
    """A 1x1 stem of 24 channels, three stages, a last 1x1 convolution, the mean over positions, a linear classifier.

    Layers, parameter counts and (by TORCH_NAMES) parameter names are those of RepDistiller and mdistiller.

    Initialisation by `init_variables`: all weights and the classifier's bias uniform in ±1/√fan_in, PyTorch's default;
    BatchNorm scale 1 and bias 0.

    Attributes:
      num_classes: Number of classes.
      widths: Numbers of channels of the stages (even) and of the last convolution; the defaults are those of size 1x.
      repeats: Numbers of units of stride 1 in the stages, each after one unit of stride 2.
      dtype: Type of the body's computation; None takes that of parameters and images. The mean and the classifier are
        float32 or wider.
    """

    num_classes: int
    widths: tuple[int, ...] = (116, 232, 464, 1024)
    repeats: tuple[int, ...] = (3, 7, 3)
    dtype: DTypeLike | None = None

    INITIALIZERS = INITIALIZERS
    TORCH_NAMES = TORCH_NAMES

    def __post_init__(self):
        _check_stages("shufflenetv2", self.widths[:-1], self.repeats)
        if not isinstance(self.widths[-1], int) or self.widths[-1] < 1:
            raise UserError(f"shufflenetv2: the last width must be a positive channel count, not {self.widths[-1]!r}.")
        if any(width % 2 for width in self.widths[:-1]):
            raise UserError(f"shufflenetv2: the stages' widths must be even, not {self.widths[:-1]}.")
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> ModelOutput:
        """Returns logits, the feature maps of stem and stages, and the pooled vector.

        Args:
          images: Images [batch, height, width, channels], floating-point, of any size.
          train: Whether to normalise by the batch's statistics instead of the running ones.

        Returns:
          logits [batch, classes]; features stem, stage1, stage2, stage3 [batch, height, width, channels] after ReLU and
          shuffle, and before both as stem_preact, ...; final_preact, the last convolution before its ReLU; pooled
          [batch, channels], the mean after that ReLU.
        """
        check_images(images, "a shufflenetv2")
        x, features = _stem(images, self.dtype, train)
        for stage, (width, repeats) in enumerate(zip(self.widths, self.repeats), start=1):
            x = preact = DownBlock(width, self.dtype, name=f"stage{stage}_block1")(x, train)
            for block in range(2, repeats + 2):
                x, preact = SplitBlock(self.dtype, name=f"stage{stage}_block{block}")(x, train)
            features |= {f"stage{stage}": x, f"stage{stage}_preact": preact}
        x = conv1x1(self.widths[-1], dtype=self.dtype, name="last")(x)
        final = batch_norm(self.dtype, train)(name="last_bn")(x)
        pooled = spatial_mean(nn.relu(final))
        logits = nn.Dense(self.num_classes, name="fc")(pooled)
        return ModelOutput(logits, {**features, "final_preact": final}, pooled)

    def preact_norms(self) -> dict[str, str]:
        """Returns {}, since half of a stage's channels do not pass through its last BatchNorm."""
        return {}


def _stem(images: Array, dtype: DTypeLike | None, train: bool) -> tuple[Array, dict[str, Array]]:
    """Returns the stem's map after ReLU, and the features stem and stem_preact."""
    preact = batch_norm(dtype, train)(name="stem_bn")(conv1x1(STEM_WIDTH, dtype=dtype, name="stem")(images))
    return nn.relu(preact), {"stem": nn.relu(preact), "stem_preact": preact}


def _divides(groups: int, before: int, width: int, repeats: int) -> bool:
    """Returns whether the groups divide all channels of a stage whose input has `before` channels."""
    added = width - before  # the first unit computes these and concatenates the pooled input
    inside = [added // 4, *[width // 4] * (repeats > 1)]
    return added >= 4 and not any(channels % groups for channels in (width, added, *inside))


def _check_stages(name: str, widths: tuple[int, ...], repeats: tuple[int, ...]) -> None:
    numbers = (*widths, *repeats)
    if len(widths) != len(repeats) or not widths or not all(isinstance(n, int) and n > 0 for n in numbers):
        raise UserError(f"{name}: there must be one repeat for each stage's width, not {widths} and {repeats}.")

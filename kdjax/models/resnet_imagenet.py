"""Residual networks of four stages, for ImageNet and, with a small stem, for CIFAR.

Reference: He, Zhang, Ren & Sun, 2016, "Deep Residual Learning for Image Recognition", table 1,
https://arxiv.org/abs/1512.03385
"""

import flax.linen as nn
from jax.typing import DTypeLike

from kdjax.errors import UserError
from kdjax.models.initialize import kaiming_normal_fan_out, ones, torch_linear, zeros
from kdjax.models.layers import batch_norm, check_images, conv1x1, conv3x3, spatial_mean
from kdjax.models.resnet import BasicBlock
from kdjax.types import Array, ModelOutput

# depth -> (number of blocks in each stage, whether the blocks are bottlenecks)
DEPTHS = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}
WIDTHS = (64, 128, 256, 512)
EXPANSION = 4  # output channels of a bottleneck over its inner channels


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions to four times the inner width, and a shortcut; the 3x3 convolution has the stride.

    Attributes:
      width: Number of inner channels.
      stride: Stride of the 3x3 convolution and of the shortcut.
      dtype: Type of the computation; None takes that of parameters and input.
    """

    width: int
    stride: int = 1
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Returns residual plus shortcut [batch, height / stride, width / stride, 4 width], before the ReLU."""
        norm, width = batch_norm(self.dtype, train), EXPANSION * self.width
        y = nn.relu(norm(name="bn1")(conv1x1(self.width, dtype=self.dtype, name="conv1")(x)))
        y = conv3x3(self.width, strides=self.stride, dtype=self.dtype, name="conv2")(y)
        y = nn.relu(norm(name="bn2")(y))
        y = norm(name="bn3")(conv1x1(width, dtype=self.dtype, name="conv3")(y))
        if self.stride != 1 or x.shape[-1] != width:
            x = conv1x1(width, strides=self.stride, dtype=self.dtype, name="shortcut")(x)
            x = norm(name="shortcut_bn")(x)
        return y + x


def _names(shortcut: str, head: str) -> tuple:
    """Returns the rules of one dialect of TORCH_NAMES, given its names of the shortcut and of the classifier."""
    return (
        (r"stem", "conv1"),
        (r"stem_bn", "bn1"),
        (r"stage(\d+)_block(\d+)/((?:conv|bn)\d)", lambda s, b, layer: f"layer{s}.{b - 1}.{layer}"),
        (r"stage(\d+)_block(\d+)/shortcut", lambda s, b: f"layer{s}.{b - 1}.{shortcut}.0"),
        (r"stage(\d+)_block(\d+)/shortcut_bn", lambda s, b: f"layer{s}.{b - 1}.{shortcut}.1"),
        (r"fc", head),
    )


class ResNet(nn.Module):
    """A stem, four stages of basic or bottleneck blocks, the mean over positions, and a linear classifier.

    Layers, parameter counts and (by TORCH_NAMES) parameter names are those of torchvision, which timm shares. With
    `small_images` they are those of RepDistiller's ResNet50.

    Initialisation by `init_variables`: convolutions from N(0, 2 / fan_out), BatchNorm scale 1 and bias 0, classifier
    uniform in ±1/√fan_in; flax's own `init` draws flax's defaults instead.

    Attributes:
      num_classes: Number of classes.
      depth: Number of layers with weights: 18, 34, 50, 101 or 152.
      width: Factor of all numbers of channels, at least 1/64.
      small_images: Whether the stem is a 3x3 convolution of stride 1 without max-pooling, instead of a 7x7 convolution
        of stride 2 with max-pooling.
      dtype: Type of the body's computation; None takes that of parameters and images. The mean and the classifier are
        float32 or wider.
    """

    num_classes: int
    depth: int = 50
    width: float = 1.0
    small_images: bool = False
    dtype: DTypeLike | None = None

    INITIALIZERS = (
        (r".*(stem|conv\d|shortcut)/kernel", kaiming_normal_fan_out),
        (r".*bn\d?/(scale|var)", ones),
        (r".*bn\d?/(bias|mean)", zeros),
        (r"fc/(kernel|bias)", torch_linear),
    )

    @property
    def TORCH_NAMES(self) -> dict[str, tuple]:  # noqa: N802, a table as in the other networks
        """Parameter names by dialect; the first is the one that is exported, RepDistiller's for small images."""
        names = {"torchvision": _names("downsample", "fc"), "repdistiller": _names("shortcut", "linear")}
        return dict(reversed(names.items())) if self.small_images else names

    def __post_init__(self):
        if self.depth not in DEPTHS:
            raise UserError(f"resnet: depth must be one of {', '.join(map(str, DEPTHS))}, not {self.depth!r}.")
        if not isinstance(self.width, int | float) or not self.width * WIDTHS[0] >= 1:
            raise UserError(f"resnet: width must be a factor of at least 1/64, not {self.width!r}.")
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> ModelOutput:
        """Returns logits, the feature maps of stem and stages, and the pooled vector.

        Args:
          images: Images [batch, height, width, channels], floating-point, of any size.
          train: Whether to normalise by the batch's statistics instead of the running ones.

        Returns:
          logits [batch, classes]; features stem (after the max-pooling, if there is one), stage1, ..., stage4
          [batch, height, width, channels] after ReLU, and the stages before ReLU as stage1_preact, ...; pooled
          [batch, channels], the mean of the last stage.
        """
        check_images(images, "a resnet")
        x = self._stem(images, train)
        features = {"stem": x}
        repeats, bottleneck = DEPTHS[self.depth]
        block = Bottleneck if bottleneck else BasicBlock
        for stage, (blocks, width) in enumerate(zip(repeats, WIDTHS, strict=True), start=1):
            preact = x
            for number in range(1, blocks + 1):
                stride = 2 if number == 1 and stage > 1 else 1
                name = f"stage{stage}_block{number}"
                preact = block(int(width * self.width), stride, self.dtype, name=name)(x, train)
                x = nn.relu(preact)
            features |= {f"stage{stage}": x, f"stage{stage}_preact": preact}
        pooled = spatial_mean(x)
        logits = nn.Dense(self.num_classes, name="fc")(pooled)
        return ModelOutput(logits, features, pooled)

    def _stem(self, images: Array, train: bool) -> Array:
        """Returns the stem's map, after ReLU and, for large images, max-pooling."""
        width, norm = int(WIDTHS[0] * self.width), batch_norm(self.dtype, train)
        if self.small_images:
            x = conv3x3(width, dtype=self.dtype, name="stem")(images)
            return nn.relu(norm(name="stem_bn")(x))
        x = nn.Conv(width, (7, 7), strides=2, padding=3, use_bias=False, dtype=self.dtype, name="stem")(images)
        x = nn.relu(norm(name="stem_bn")(x))
        return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))

    def preact_norms(self) -> dict[str, str]:
        """Returns for each stage the path of the last BatchNorm before its ReLU."""
        repeats, bottleneck = DEPTHS[self.depth]
        last = "bn3" if bottleneck else "bn2"
        return {f"stage{s}": f"stage{s}_block{blocks}/{last}" for s, blocks in enumerate(repeats, start=1)}

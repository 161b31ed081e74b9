"""MobileNets: V1 for ImageNet, and V2 as the distillation tables on CIFAR have it.

References: Howard et al., 2017, "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications",
https://arxiv.org/abs/1704.04861; Sandler, Howard, Zhu, Zhmoginov & Chen, 2018, "MobileNetV2: Inverted Residuals and
Linear Bottlenecks", https://arxiv.org/abs/1801.04381
"""

import math
from functools import partial

import flax.linen as nn
from jax.typing import DTypeLike

from kdjax.errors import UserError
from kdjax.models.initialize import kaiming_normal_fan_out, normal_001, ones, torch_linear, zeros
from kdjax.models.layers import batch_norm, check_images, conv1x1, conv3x3, depthwise3x3, spatial_mean
from kdjax.types import Array, ModelOutput

# MobileNetV2's groups of blocks: (expansion, channels at width 1, repeats, stride of the first block). The second group
# has stride 1 for small images, where the paper has 2.
V2_BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
V2_STAGE_ENDS = {2: "stage1", 3: "stage2", 5: "stage3", 7: "stage4"}  # group -> the feature that is its output
V2_LAST = 1280  # channels of the last convolution

# MobileNetV1's blocks: (channels, stride).
V1_BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))
V1_STAGE_ENDS = {3: "stage1", 5: "stage2", 11: "stage3", 13: "stage4"}


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise convolution, linear 1x1 projection; added to the input where the shape is the same.

    Attributes:
      width: Number of output channels.
      expansion: Inner channels over input channels.
      stride: Stride of the depthwise convolution.
      dtype: Type of the computation; None takes that of parameters and input.
    """

    width: int
    expansion: int
    stride: int
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Returns [batch, height / stride, width / stride, channels]."""
        norm, hidden = batch_norm(self.dtype, train), x.shape[-1] * self.expansion
        y = conv1x1(hidden, dtype=self.dtype, name="expand")(x)
        y = nn.relu(norm(name="expand_bn")(y))
        y = depthwise3x3(hidden, strides=self.stride, dtype=self.dtype, name="depthwise")(y)
        y = nn.relu(norm(name="depthwise_bn")(y))
        y = conv1x1(self.width, dtype=self.dtype, name="project")(y)
        y = norm(name="project_bn")(y)
        return x + y if self.stride == 1 and x.shape[-1] == self.width else y


class MobileNetV2(nn.Module):
    """A stem of stride 2, seven groups of inverted residuals, a 1x1 convolution, the mean, a linear classifier.

    The activations are ReLU, not ReLU6. Layers, parameter counts and (by TORCH_NAMES) parameter names are those of
    RepDistiller and mdistiller (`mobilenetv2_half` has width 0.5).

    Initialisation by `init_variables`: convolutions from N(0, 2 / fan_out), BatchNorm scale 1 and bias 0, classifier
    weights from N(0, 0.01^2) and bias 0; flax's own `init` draws flax's defaults instead.

    Attributes:
      num_classes: Number of classes.
      width: Factor of all numbers of channels, at least 1/16; the last convolution keeps at least 1280.
      dtype: Type of the body's computation; None takes that of parameters and images. The mean and the classifier are
        float32 or wider.
    """

    num_classes: int
    width: float = 1.0
    dtype: DTypeLike | None = None

    INITIALIZERS = (
        (r"(.*/)?(stem|expand|depthwise|project|last)/kernel", kaiming_normal_fan_out),
        (r".*bn/(scale|var)", ones),
        (r".*bn/(bias|mean)", zeros),
        (r"fc/kernel", normal_001),
        (r"fc/bias", zeros),
    )
    TORCH_NAMES = {
        "repdistiller": (
            (r"stem", "conv1.0"),
            (r"stem_bn", "conv1.1"),
            (r"block(\d)_(\d)/expand", lambda block, i: f"blocks.{block - 1}.{i - 1}.conv.0"),
            (r"block(\d)_(\d)/expand_bn", lambda block, i: f"blocks.{block - 1}.{i - 1}.conv.1"),
            (r"block(\d)_(\d)/depthwise", lambda block, i: f"blocks.{block - 1}.{i - 1}.conv.3"),
            (r"block(\d)_(\d)/depthwise_bn", lambda block, i: f"blocks.{block - 1}.{i - 1}.conv.4"),
            (r"block(\d)_(\d)/project", lambda block, i: f"blocks.{block - 1}.{i - 1}.conv.6"),
            (r"block(\d)_(\d)/project_bn", lambda block, i: f"blocks.{block - 1}.{i - 1}.conv.7"),
            (r"last", "conv2.0"),
            (r"last_bn", "conv2.1"),
            (r"fc", "classifier.0"),
        ),
    }

    def __post_init__(self):
        if not isinstance(self.width, int | float) or not 1 / 16 <= self.width < math.inf:
            raise UserError(f"mobilenetv2: width must be a factor of at least 1/16, such as 0.5, not {self.width!r}.")
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> ModelOutput:
        """Returns logits, the feature maps of stem and stages, and the pooled vector.

        Args:
          images: Images [batch, height, width, channels], floating-point, of any size.
          train: Whether to normalise by the batch's statistics instead of the running ones.

        Returns:
          logits [batch, classes]; features stem [batch, height, width, channels] after ReLU, stem_preact before it, and
          stage1, ..., stage4, the linear outputs of blocks; final_preact, the last convolution before its ReLU; pooled
          [batch, 1280] for widths of at most 1, the mean after that ReLU.
        """
        check_images(images, "a mobilenetv2")
        norm = batch_norm(self.dtype, train)
        x = conv3x3(int(32 * self.width), strides=2, dtype=self.dtype, name="stem")(images)
        preact = norm(name="stem_bn")(x)
        x = nn.relu(preact)
        features = {"stem": x, "stem_preact": preact}
        for number, (expansion, width, repeats, stride) in enumerate(V2_BLOCKS, start=1):
            for i in range(1, repeats + 1):
                block = partial(InvertedResidual, int(width * self.width), expansion, stride if i == 1 else 1)
                x = block(dtype=self.dtype, name=f"block{number}_{i}")(x, train)
            if number in V2_STAGE_ENDS:
                features[V2_STAGE_ENDS[number]] = x
        x = conv1x1(int(V2_LAST * max(self.width, 1)), dtype=self.dtype, name="last")(x)
        final = norm(name="last_bn")(x)
        pooled = spatial_mean(nn.relu(final))
        logits = nn.Dense(self.num_classes, name="fc")(pooled)
        return ModelOutput(logits, {**features, "final_preact": final}, pooled)

    def preact_norms(self) -> dict[str, str]:
        """Returns for each stage the path of its last BatchNorm; no ReLU follows, so the feature is its output."""
        return {stage: f"block{block}_{V2_BLOCKS[block - 1][2]}/project_bn" for block, stage in V2_STAGE_ENDS.items()}


class MobileNetV1(nn.Module):
    """A stem of stride 2, thirteen depthwise-separable blocks up to 1024 channels, the mean, a linear classifier.

    Layers, parameter counts and (by TORCH_NAMES) parameter names are those of mdistiller.

    Initialisation by `init_variables`: all weights uniform in ±1/√fan_in, PyTorch's default, and the classifier's bias
    too; BatchNorm scale 1 and bias 0. flax's own `init` draws flax's defaults instead.

    Attributes:
      num_classes: Number of classes.
      dtype: Type of the body's computation; None takes that of parameters and images. The mean and the classifier are
        float32 or wider.
    """

    num_classes: int
    dtype: DTypeLike | None = None

    INITIALIZERS = (
        (r"(stem|.*depthwise|.*pointwise|fc)/(kernel|bias)", torch_linear),
        (r".*bn/(scale|var)", ones),
        (r".*bn/(bias|mean)", zeros),
    )
    TORCH_NAMES = {
        "mdistiller": (
            (r"stem", "model.0.0"),
            (r"stem_bn", "model.0.1"),
            (r"block(\d+)_depthwise", lambda block: f"model.{block}.0"),
            (r"block(\d+)_depthwise_bn", lambda block: f"model.{block}.1"),
            (r"block(\d+)_pointwise", lambda block: f"model.{block}.3"),
            (r"block(\d+)_pointwise_bn", lambda block: f"model.{block}.4"),
            (r"fc", "fc"),
        ),
    }

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> ModelOutput:
        """Returns logits, the feature maps of stem and stages, and the pooled vector.

        Args:
          images: Images [batch, height, width, channels], floating-point, of any size.
          train: Whether to normalise by the batch's statistics instead of the running ones.

        Returns:
          logits [batch, classes]; features stem, stage1, ..., stage4 [batch, height, width, channels] after ReLU, and
          before ReLU as stem_preact, ...; pooled [batch, 1024], the mean of the last stage.
        """
        check_images(images, "a mobilenetv1")
        norm = batch_norm(self.dtype, train)
        x = conv3x3(32, strides=2, dtype=self.dtype, name="stem")(images)
        preact = norm(name="stem_bn")(x)
        x = nn.relu(preact)
        features = {"stem": x, "stem_preact": preact}
        for number, (width, stride) in enumerate(V1_BLOCKS, start=1):
            name = f"block{number}"
            x = depthwise3x3(x.shape[-1], strides=stride, dtype=self.dtype, name=f"{name}_depthwise")(x)
            x = nn.relu(norm(name=f"{name}_depthwise_bn")(x))
            x = conv1x1(width, dtype=self.dtype, name=f"{name}_pointwise")(x)
            preact = norm(name=f"{name}_pointwise_bn")(x)
            x = nn.relu(preact)
            if stage := V1_STAGE_ENDS.get(number):
                features |= {stage: x, f"{stage}_preact": preact}
        pooled = spatial_mean(x)
        logits = nn.Dense(self.num_classes, name="fc")(pooled)
        return ModelOutput(logits, features, pooled)

    def preact_norms(self) -> dict[str, str]:
        """Returns for each stage the path of the BatchNorm that computes its pre-activation."""
        return {stage: f"block{block}_pointwise_bn" for block, stage in V1_STAGE_ENDS.items()}

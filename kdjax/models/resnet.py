"""Residual networks for small images, as papers on distillation build them for CIFAR.

Reference: He, Zhang, Ren & Sun, 2016, "Deep Residual Learning for Image Recognition", section 4.2,
https://arxiv.org/abs/1512.03385
"""

from collections.abc import Sequence

import flax.linen as nn
from jax.typing import DTypeLike

from kdjax.errors import UserError
from kdjax.models.initialize import kaiming_normal_fan_out, ones, torch_linear, zeros
from kdjax.models.layers import batch_norm, check_images, conv1x1, conv3x3, spatial_mean
from kdjax.types import Array, ModelOutput


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution with BatchNorm where the shape changes.

    Attributes:
      width: Number of output channels.
      stride: Stride of the first convolution and of the shortcut.
      dtype: Type of the computation; None takes that of parameters and input.
    """

    width: int
    stride: int = 1
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Returns residual plus shortcut [batch, height / stride, width / stride, channels], before the ReLU."""
        norm = batch_norm(self.dtype, train)
        y = conv3x3(self.width, strides=self.stride, dtype=self.dtype, name="conv1")(x)
        y = nn.relu(norm(name="bn1")(y))
        y = conv3x3(self.width, dtype=self.dtype, name="conv2")(y)
        y = norm(name="bn2")(y)
        if self.stride != 1 or x.shape[-1] != self.width:
            x = conv1x1(self.width, strides=self.stride, dtype=self.dtype, name="shortcut")(x)
            x = norm(name="shortcut_bn")(x)
        return y + x


class CifarResNet(nn.Module):
    """A 3x3 stem, stages of basic blocks, the mean over positions, and a linear classifier.

    The first stage has the image's size, each later stage half the size of the one before. Layers, parameter counts and
    (by TORCH_NAMES) parameter names are those of RepDistiller and mdistiller.

    Initialisation by `init_variables`: convolutions from N(0, 2 / fan_out), BatchNorm scale 1 and bias 0, classifier
    uniform in ±1/√fan_in; flax's own `init` draws flax's defaults instead. The running variance is flax's, which is
    biased, unless `kdjax.models.call` is given unbiased=True.

    Attributes:
      num_classes: Number of classes.
      depth: Number of layers with weights, 2 + 2 * stages * blocks a stage: 8, 14, 20, 32, 44, 56 or 110 for three
        stages.
      widths: Numbers of channels of the stem and of each stage.
      dtype: Type of the body's computation; None takes that of parameters and images. The mean and the classifier are
        float32 or wider.
    """

    num_classes: int
    depth: int = 20
    widths: Sequence[int] = (16, 16, 32, 64)
    dtype: DTypeLike | None = None

    INITIALIZERS = (
        (r".*(stem|conv1|conv2|shortcut)/kernel", kaiming_normal_fan_out),
        (r".*bn\d?/(scale|var)", ones),
        (r".*bn\d?/(bias|mean)", zeros),
        (r"fc/(kernel|bias)", torch_linear),
    )
    TORCH_NAMES = {
        "repdistiller": (
            (r"stem", "conv1"),
            (r"stem_bn", "bn1"),
            (r"stage(\d+)_block(\d+)/((?:conv|bn)\d)", lambda s, b, layer: f"layer{s}.{b - 1}.{layer}"),
            (r"stage(\d+)_block(\d+)/shortcut", lambda s, b: f"layer{s}.{b - 1}.downsample.0"),
            (r"stage(\d+)_block(\d+)/shortcut_bn", lambda s, b: f"layer{s}.{b - 1}.downsample.1"),
            (r"fc", "fc"),
        ),
    }

    def __post_init__(self):
        widths = self.widths
        if not isinstance(widths, tuple | list) or len(widths) < 2 or not all(isinstance(w, int) for w in widths):
            raise UserError(f"resnet: widths must be (stem, stage 1, stage 2, ...), not {widths!r}.")
        layers = 2 * (len(widths) - 1)
        if not isinstance(self.depth, int) or self.depth < layers + 2 or (self.depth - 2) % layers:
            raise UserError(
                f"resnet: depth must be 2 + {layers} n for {len(widths) - 1} stages, such as {layers + 2}, "
                f"not {self.depth!r}."
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Array, train: bool = False, after: int = 0) -> ModelOutput:
        """Returns logits, the feature maps of stem and stages, and the pooled vector.

        Args:
          images: Images [batch, height, width, channels], floating-point, of any size.
          train: Whether to normalise by the batch's statistics instead of the running ones.
          after: Number of the stage whose output `images` are; the layers up to it, and their features, are then left
            out. 0 for images.

        Returns:
          logits [batch, classes]; features stem, stage1, stage2, ... [batch, height, width, channels] after ReLU, and
          before ReLU as stem_preact, stage1_preact, ...; pooled [batch, channels], the mean of the last stage.
        """
        check_images(images, "a resnet")
        x, features = images, {}
        if not after:
            x = conv3x3(self.widths[0], dtype=self.dtype, name="stem")(x)
            preact = batch_norm(self.dtype, train)(name="stem_bn")(x)
            x = nn.relu(preact)
            features = {"stem": x, "stem_preact": preact}
        for stage, width in list(enumerate(self.widths[1:], start=1))[after:]:
            x, preact = self._stage(x, stage, width, train)
            features |= {f"stage{stage}": x, f"stage{stage}_preact": preact}
        pooled = spatial_mean(x)
        logits = nn.Dense(self.num_classes, name="fc")(pooled)
        return ModelOutput(logits, features, pooled)

    def stage_widths(self) -> tuple[int, ...]:
        """Returns the number of channels of each stage."""
        return tuple(self.widths[1:])

    def preact_norms(self) -> dict[str, str]:
        """Returns for each stage the path of the last BatchNorm before its ReLU."""
        blocks = (self.depth - 2) // (2 * (len(self.widths) - 1))
        return {f"stage{s}": f"stage{s}_block{blocks}/bn2" for s in range(1, len(self.widths))}

    def _stage(self, x: Array, stage: int, width: int, train: bool) -> tuple[Array, Array]:
        """Returns a stage's output [batch, height, width, width] after its last ReLU and before it."""
        preact = x
        blocks = (self.depth - 2) // (2 * (len(self.widths) - 1))
        for block in range(1, blocks + 1):
            stride = 2 if block == 1 and stage > 1 else 1
            name = f"stage{stage}_block{block}"
            preact = BasicBlock(width, stride, self.dtype, name=name)(x, train)
            x = nn.relu(preact)
        return x, preact

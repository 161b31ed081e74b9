"""Wide residual networks: pre-activation blocks, with k times the channels of a CIFAR ResNet.

Reference: Zagoruyko & Komodakis, 2016, "Wide Residual Networks", https://arxiv.org/abs/1605.07146
"""

import flax.linen as nn
from jax.typing import DTypeLike

from kdjax.errors import UserError
from kdjax.models.initialize import kaiming_normal_fan_out, ones, torch_linear, zeros
from kdjax.models.layers import batch_norm, check_images, conv1x1, conv3x3, spatial_mean
from kdjax.types import Array, ModelOutput

WIDTHS = (16, 32, 64)  # numbers of channels of the stages at k = 1


class WideBlock(nn.Module):
    """BatchNorm, ReLU and a 3x3 convolution, twice; the shortcut is a 1x1 convolution where the width changes.

    Attributes:
      width: Number of output channels.
      stride: Stride of the first convolution and of the shortcut.
      dtype: Type of the computation; None takes that of parameters and input.
    """

    width: int
    stride: int = 1
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> tuple[Array, Array]:
        """Returns the block's output, and the output of its first BatchNorm, the pre-activation of its input."""
        norm = batch_norm(self.dtype, train)
        preact = norm(name="bn1")(x)
        y = nn.relu(preact)
        if x.shape[-1] != self.width:  # the shortcut then comes after the first BatchNorm and ReLU
            x = conv1x1(self.width, strides=self.stride, dtype=self.dtype, name="shortcut")(y)
        y = conv3x3(self.width, strides=self.stride, dtype=self.dtype, name="conv1")(y)
        y = nn.relu(norm(name="bn2")(y))
        y = conv3x3(self.width, dtype=self.dtype, name="conv2")(y)
        return x + y, preact


class WideResNet(nn.Module):
    """A 3x3 stem, three stages of pre-activation blocks, BatchNorm, ReLU, the mean over positions, a linear classifier.

    Layers, parameter counts and (by TORCH_NAMES) parameter names are those of RepDistiller and mdistiller.

    Initialisation by `init_variables`: convolutions from N(0, 2 / fan_out), BatchNorm scale 1 and bias 0, classifier
    weights uniform in ±1/√fan_in and bias 0; flax's own `init` draws flax's defaults instead.

    Attributes:
      num_classes: Number of classes.
      depth: Number of convolutions, the three shortcuts included, 4 + 6 * blocks a stage: 10, 16, 22, 28, 40, ...
      width: Widening factor k, at least 1.
      dtype: Type of the body's computation; None takes that of parameters and images. The mean and the classifier are
        float32 or wider.
    """

    num_classes: int
    depth: int = 40
    width: int = 2
    dtype: DTypeLike | None = None

    INITIALIZERS = (
        (r".*(stem|conv1|conv2|shortcut)/kernel", kaiming_normal_fan_out),
        (r".*bn\d?/(scale|var)", ones),
        (r".*bn\d?/(bias|mean)", zeros),
        (r"fc/kernel", torch_linear),
        (r"fc/bias", zeros),
    )
    TORCH_NAMES = {
        "repdistiller": (
            (r"stem", "conv1"),
            (r"stage(\d+)_block(\d+)/((?:conv|bn)\d)", lambda s, b, layer: f"block{s}.layer.{b - 1}.{layer}"),
            (r"stage(\d+)_block(\d+)/shortcut", lambda s, b: f"block{s}.layer.{b - 1}.convShortcut"),
            (r"final_bn", "bn1"),
            (r"fc", "fc"),
        ),
    }

    def __post_init__(self):
        if not isinstance(self.depth, int) or self.depth < 10 or (self.depth - 4) % 6:
            raise UserError(f"wrn: depth must be 4 + 6 n, such as 16 or 40, not {self.depth!r}.")
        if not isinstance(self.width, int) or self.width < 1:
            raise UserError(f"wrn: width must be a whole widening factor of at least 1, not {self.width!r}.")
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
          logits [batch, classes]; features stem, stage1, stage2, stage3 [batch, height, width, channels], the sums of
          residual and shortcut, and stage1_preact, stage2_preact, stage3_preact, the stages after the BatchNorm that
          follows; pooled [batch, channels], the mean after the last ReLU.
        """
        check_images(images, "a wrn")
        x, maps, preacts = images, {}, {}
        if not after:
            x = maps["stem"] = conv3x3(WIDTHS[0], dtype=self.dtype, name="stem")(images)
        for stage, width in list(enumerate(WIDTHS, start=1))[after:]:
            for block in range(1, (self.depth - 4) // 6 + 1):
                stride = 2 if block == 1 and stage > 1 else 1
                name = f"stage{stage}_block{block}"
                x, preact = WideBlock(width * self.width, stride, self.dtype, name=name)(x, train)
                if block == 1 and stage > 1:
                    preacts[f"stage{stage - 1}_preact"] = preact
            maps[f"stage{stage}"] = x
        preacts["stage3_preact"] = preact = batch_norm(self.dtype, train)(name="final_bn")(x)
        pooled = spatial_mean(nn.relu(preact))
        logits = nn.Dense(self.num_classes, name="fc")(pooled)
        return ModelOutput(logits, maps | preacts, pooled)

    def stage_widths(self) -> tuple[int, ...]:
        """Returns the number of channels of each stage."""
        return tuple(width * self.width for width in WIDTHS)

    def preact_norms(self) -> dict[str, str]:
        """Returns for each stage the path of the BatchNorm that computes its pre-activation."""
        return {"stage1": "stage2_block1/bn1", "stage2": "stage3_block1/bn1", "stage3": "final_bn"}

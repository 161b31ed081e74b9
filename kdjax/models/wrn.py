"""Wide residual networks (Zagoruyko & Komodakis 2016): pre-activation, widths k times those of a ResNet."""

from typing import Any

import flax.linen as nn

from kdjax.errors import UserError
from kdjax.models.initialize import kaiming_normal_fan_out, ones, torch_linear, zeros
from kdjax.models.layers import batch_norm, check_images, conv1x1, conv3x3, spatial_mean
from kdjax.types import Array, ModelOutput

WIDTHS = (16, 32, 64)  # of the stages at k = 1


class WideBlock(nn.Module):
    """BatchNorm, ReLU and 3x3 convolution, twice; where the width changes the shortcut is a 1x1 convolution.

    Attributes:
      width: channels of the output.
      stride: of the first convolution and the shortcut.
      dtype: of the computation; None takes that of parameters and input.
    """

    width: int
    stride: int = 1
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> tuple[Array, Array]:
        """Returns the block's output and the first BatchNorm's, which is the pre-activation of what came in."""
        norm = batch_norm(self.dtype, train)
        preact = norm(name="bn1")(x)
        y = nn.relu(preact)
        if x.shape[-1] != self.width:  # the shortcut then shares the first BatchNorm and ReLU
            x = conv1x1(self.width, strides=self.stride, dtype=self.dtype, name="shortcut")(y)
        y = conv3x3(self.width, strides=self.stride, dtype=self.dtype, name="conv1")(y)
        y = nn.relu(norm(name="bn2")(y))
        y = conv3x3(self.width, dtype=self.dtype, name="conv2")(y)
        return x + y, preact


class WideResNet(nn.Module):
    """A 3x3 stem of 16 channels, three stages of pre-activation blocks, BatchNorm, ReLU, mean, classifier.

    Its initial weights are those of `init_variables`; `init` of flax gives flax's default ones.

    Attributes:
      num_classes: width of the logits.
      depth: convolutions, the three shortcuts among them, 4 + 6 * blocks a stage: 16, 22, 28, 40.
      width: the widening factor k, at least 1.
      dtype: of the body; None takes that of parameters and images. Mean and classifier are float32 at least.
    """

    num_classes: int
    depth: int = 40
    width: int = 2
    dtype: Any = None

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
    def __call__(self, images: Array, train: bool = False) -> ModelOutput:
        """Returns logits, the features of stem and stages, and the mean over the last map.

        Args:
          images: [batch, height, width, channels], floating, of any size.
          train: normalises by the batch's statistics instead of the running ones.

        Returns:
          logits [batch, classes]; features stem, stage1, stage2, stage3 [batch, height, width, channels] as the blocks
          leave them, and stage1_preact, ... after the BatchNorm that follows; pooled [batch, channels].
        """
        check_images(images, "a wrn")
        x = conv3x3(WIDTHS[0], dtype=self.dtype, name="stem")(images)
        maps, preacts = [x], []
        for stage, width in enumerate(WIDTHS, start=1):
            for block in range(1, (self.depth - 4) // 6 + 1):
                stride = 2 if block == 1 and stage > 1 else 1
                name = f"stage{stage}_block{block}"
                x, preact = WideBlock(width * self.width, stride, self.dtype, name=name)(x, train)
                if block == 1:
                    preacts.append(preact)
            maps.append(x)
        preacts.append(batch_norm(self.dtype, train)(name="final_bn")(x))
        pooled = spatial_mean(nn.relu(preacts[-1]))
        logits = nn.Dense(self.num_classes, name="fc")(pooled)
        features = {name: maps[i] for i, name in enumerate(("stem", "stage1", "stage2", "stage3"))}
        features |= {f"stage{i}_preact": preacts[i] for i in (1, 2, 3)}
        return ModelOutput(logits, features, pooled)

    def preact_norms(self) -> dict[str, str]:
        """Returns for each stage the path of the BatchNorm that makes its pre-activation."""
        return {"stage1": "stage2_block1/bn1", "stage2": "stage3_block1/bn1", "stage3": "final_bn"}

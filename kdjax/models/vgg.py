"""VGG with BatchNorm for small images (Simonyan & Zisserman 2015), one linear classifier, as distillation uses it."""

from typing import Any

import flax.linen as nn

from kdjax.errors import UserError
from kdjax.models.initialize import kaiming_normal_fan_out, normal_001, ones, zeros
from kdjax.models.layers import batch_norm, check_images, conv3x3, spatial_mean
from kdjax.types import Array, ModelOutput

# depth -> convolutions of each block
BLOCKS = {8: (1, 1, 1, 1, 1), 11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
WIDTHS = (64, 128, 256, 512, 512)
FOURTH_POOL = 64  # height at which, as in the papers' code, there is a pooling after the fourth block too


class VGG(nn.Module):
    """Five blocks of 3x3 convolutions (with bias) and BatchNorm, max-pooling between them, mean, classifier.

    Its initial weights are those of `init_variables`; `init` of flax gives flax's default ones.

    Attributes:
      num_classes: width of the logits.
      depth: 8, 11, 13, 16 or 19.
      widths: channels of the five blocks.
      dtype: of the body; None takes that of parameters and images. Mean and classifier are float32 at least.
    """

    num_classes: int
    depth: int = 13
    widths: tuple[int, ...] = WIDTHS
    dtype: Any = None

    STEM = "stem_conv1"
    INITIALIZERS = (
        (r".*conv\d/kernel", kaiming_normal_fan_out),
        (r".*bn\d/(scale|var)", ones),
        (r".*bn\d/mean", zeros),
        (r".*(conv|bn)\d/bias", zeros),
        (r"fc/kernel", normal_001),
        (r"fc/bias", zeros),
    )
    # A block is a sequence of convolution, BatchNorm, ReLU, and so three numbers a convolution.
    TORCH_NAMES = {
        "repdistiller": (
            (r"stem_conv(\d)", lambda i: f"block0.{3 * i - 3}"),
            (r"stem_bn(\d)", lambda i: f"block0.{3 * i - 2}"),
            (r"stage(\d)_conv(\d)", lambda stage, i: f"block{stage}.{3 * i - 3}"),
            (r"stage(\d)_bn(\d)", lambda stage, i: f"block{stage}.{3 * i - 2}"),
            (r"fc", "classifier"),
        ),
    }

    def __post_init__(self):
        if self.depth not in BLOCKS:
            raise UserError(f"vgg: depth must be one of {', '.join(map(str, BLOCKS))}, not {self.depth!r}.")
        if len(self.widths) != len(WIDTHS) or not all(isinstance(width, int) and width > 0 for width in self.widths):
            raise UserError(f"vgg: widths must be five positive channel counts, such as {WIDTHS}, not {self.widths!r}.")
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> ModelOutput:
        """Returns logits, the features of the five blocks, and the mean over the last map.

        Args:
          images: [batch, height, width, channels], floating, 8 pixels a side at least (16 where height is 64).
          train: normalises by the batch's statistics instead of the running ones.

        Returns:
          logits [batch, classes]; features stem, stage1, ..., stage4 [batch, height, width, channels] after ReLU and
          before the pooling, and each of them before its ReLU (stem_preact, ...); pooled [batch, channels].

        Raises:
          UserError: images of another rank, or so small that the pooling would leave nothing.
        """
        fourth_pool = images.shape[1:2] == (FOURTH_POOL,)
        check_images(images, "a vgg", least=16 if fourth_pool else 8)
        x, features = images, {}
        for number, (convolutions, width) in enumerate(zip(BLOCKS[self.depth], self.widths, strict=True)):
            name = f"stage{number}" if number else "stem"
            preact = self._block(x, name, convolutions, width, train)
            x = nn.relu(preact)
            features |= {name: x, f"{name}_preact": preact}
            if number < 3 or (number == 3 and fourth_pool):
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
        pooled = spatial_mean(x)
        logits = nn.Dense(self.num_classes, name="fc")(pooled)
        return ModelOutput(logits, features, pooled)

    def _block(self, x: Array, name: str, convolutions: int, width: int, train: bool) -> Array:
        for i in range(1, convolutions + 1):
            x = nn.relu(x) if i > 1 else x
            x = conv3x3(width, use_bias=True, dtype=self.dtype, name=f"{name}_conv{i}")(x)
            x = batch_norm(self.dtype, train)(name=f"{name}_bn{i}")(x)
        return x

    def preact_norms(self) -> dict[str, str]:
        """Returns for each stage the path of the BatchNorm that makes its pre-activation."""
        return {f"stage{i}": f"stage{i}_bn{BLOCKS[self.depth][i]}" for i in range(1, 5)}

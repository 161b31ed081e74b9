"""VGG with BatchNorm and one linear classifier, for small images, as papers on distillation build it.

Reference: Simonyan & Zisserman, 2015, "Very Deep Convolutional Networks for Large-Scale Image Recognition",
https://arxiv.org/abs/1409.1556
"""

import flax.linen as nn
from jax.typing import DTypeLike

from kdjax.errors import UserError
from kdjax.models.initialize import kaiming_normal_fan_out, normal_001, ones, zeros
from kdjax.models.layers import batch_norm, check_images, conv3x3, spatial_mean
from kdjax.types import Array, ModelOutput

# depth -> number of convolutions in each block
BLOCKS = {8: (1, 1, 1, 1, 1), 11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
WIDTHS = (64, 128, 256, 512, 512)
FOURTH_POOL = 64  # image height at which RepDistiller's code pools after the fourth block too


class VGG(nn.Module):
    """Five blocks of 3x3 convolutions and BatchNorm, max-pooling after the first three, the mean, a linear classifier.

    The convolutions have biases. Layers, parameter counts and (by TORCH_NAMES) parameter names are those of
    RepDistiller and mdistiller.

    Initialisation by `init_variables`: convolutions from N(0, 2 / fan_out) with bias 0, BatchNorm scale 1 and bias 0,
    classifier weights from N(0, 0.01^2) and bias 0; flax's own `init` draws flax's defaults instead.

    Attributes:
      num_classes: Number of classes.
      depth: 8, 11, 13, 16 or 19: the number of convolutions plus 3, for the three linear layers of the original.
      widths: Numbers of channels of the five blocks.
      dtype: Type of the body's computation; None takes that of parameters and images. The mean and the classifier are
        float32 or wider.
    """

    num_classes: int
    depth: int = 13
    widths: tuple[int, ...] = WIDTHS
    dtype: DTypeLike | None = None

    STEM = "stem_conv1"
    INITIALIZERS = (
        (r".*conv\d/kernel", kaiming_normal_fan_out),
        (r".*bn\d/(scale|var)", ones),
        (r".*bn\d/mean", zeros),
        (r".*(conv|bn)\d/bias", zeros),
        (r"fc/kernel", normal_001),
        (r"fc/bias", zeros),
    )
    # In PyTorch a block is a sequence of convolution, BatchNorm and ReLU, so indices advance by three a convolution.
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
        """Returns logits, the feature maps of the five blocks, and the pooled vector.

        Args:
          images: Images [batch, height, width, channels], floating-point, at least 8 pixels a side, or 16 if the height
            is 64.
          train: Whether to normalise by the batch's statistics instead of the running ones.

        Returns:
          logits [batch, classes]; features stem, stage1, ..., stage4 [batch, height, width, channels] after ReLU and
          before pooling, and before ReLU as stem_preact, ...; pooled [batch, channels], the mean of the last block.

        Raises:
          UserError: The images have another number of axes, or are so small that pooling would leave nothing.
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
        """Returns a block's output before its last ReLU."""
        for i in range(1, convolutions + 1):
            x = nn.relu(x) if i > 1 else x
            x = conv3x3(width, use_bias=True, dtype=self.dtype, name=f"{name}_conv{i}")(x)
            x = batch_norm(self.dtype, train)(name=f"{name}_bn{i}")(x)
        return x

    def preact_norms(self) -> dict[str, str]:
        """Returns for each stage the path of the BatchNorm that computes its pre-activation."""
        return {f"stage{i}": f"stage{i}_bn{BLOCKS[self.depth][i]}" for i in range(1, 5)}

"""Densely connected networks for small images: each layer reads the outputs of all earlier layers of its block.

Reference: Huang, Liu, van der Maaten & Weinberger, 2017, "Densely Connected Convolutional Networks",
https://arxiv.org/abs/1608.06993
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from kdjax.errors import UserError
from kdjax.models.initialize import kaiming_normal_fan_out, ones, torch_linear, zeros
from kdjax.models.layers import batch_norm, check_images, conv1x1, conv3x3, spatial_mean
from kdjax.types import Array, ModelOutput

BLOCKS = 3
BOTTLENECK = 4  # channels of a 1x1 bottleneck over the growth rate


class DenseLayer(nn.Module):
    """BatchNorm, ReLU and a 3x3 convolution to `growth` channels, which are appended to the input.

    Attributes:
      growth: Number of channels that the layer adds.
      bottleneck: Whether BatchNorm, ReLU and a 1x1 convolution come first.
      dtype: Type of the computation; None takes that of parameters and input.
    """

    growth: int
    bottleneck: bool
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Returns [batch, height, width, channels + growth]."""
        norm = batch_norm(self.dtype, train)
        y = nn.relu(norm(name="bn1")(x))
        if self.bottleneck:
            y = conv1x1(BOTTLENECK * self.growth, dtype=self.dtype, name="conv1")(y)
            y = nn.relu(norm(name="bn2")(y))
        y = conv3x3(self.growth, dtype=self.dtype, name="conv2" if self.bottleneck else "conv1")(y)
        return jnp.concatenate([x, y.astype(x.dtype)], axis=-1)


class Transition(nn.Module):
    """BatchNorm, ReLU, a 1x1 convolution, and the mean over 2x2 pixels.

    Attributes:
      width: Number of output channels.
      dtype: Type of the computation; None takes that of parameters and input.
    """

    width: int
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Returns [batch, height / 2, width / 2, channels]."""
        x = nn.relu(batch_norm(self.dtype, train)(name="bn1")(x))
        x = conv1x1(self.width, dtype=self.dtype, name="conv1")(x)
        return nn.avg_pool(x, (2, 2), strides=(2, 2))


class DenseNet(nn.Module):
    """A 3x3 stem, three dense blocks with transitions between them, BatchNorm, ReLU, the mean, a linear classifier.

    Layers and parameter counts are those of the paper's CIFAR networks. Parameter names (by TORCH_NAMES) are those of
    three PyTorch repositories: andreasveit/densenet-pytorch, bamos/densenet.pytorch and
    gpleiss/efficient_densenet_pytorch.

    Initialisation by `init_variables`: convolutions from N(0, 2 / fan_out), BatchNorm scale 1 and bias 0, classifier
    weights uniform in ±1/√fan_in and bias 0; flax's own `init` draws flax's defaults instead.

    Attributes:
      num_classes: Number of classes.
      depth: Number of layers with weights, 4 + 3 n, or 4 + 6 n with bottlenecks.
      growth: Growth rate k, the number of channels that a layer adds.
      bottleneck: Whether this is DenseNet-BC, with 1x1 bottlenecks, transitions that halve the channels, and a stem of
        2 k channels instead of 16.
      dtype: Type of the body's computation; None takes that of parameters and images. The mean and the classifier are
        float32 or wider.
    """

    num_classes: int
    depth: int = 100
    growth: int = 12
    bottleneck: bool = True
    dtype: DTypeLike | None = None

    INITIALIZERS = (
        (r".*(stem|conv\d)/kernel", kaiming_normal_fan_out),
        (r".*bn\d?/(scale|var)", ones),
        (r".*bn\d?/(bias|mean)", zeros),
        (r"fc/kernel", torch_linear),
        (r"fc/bias", zeros),
    )
    TORCH_NAMES = {
        "andreasveit": (
            (r"stem", "conv1"),
            (r"block(\d)_layer(\d+)/((?:conv|bn)\d)", lambda b, i, layer: f"block{b}.layer.{i - 1}.{layer}"),
            (r"transition(\d)/(conv1|bn1)", lambda b, layer: f"trans{b}.{layer}"),
            (r"final_bn", "bn1"),
            (r"fc", "fc"),
        ),
        "bamos": (
            (r"stem", "conv1"),
            (r"block(\d)_layer(\d+)/((?:conv|bn)\d)", lambda b, i, layer: f"dense{b}.{i - 1}.{layer}"),
            (r"transition(\d)/(conv1|bn1)", lambda b, layer: f"trans{b}.{layer}"),
            (r"final_bn", "bn1"),
            (r"fc", "fc"),
        ),
        "gpleiss": (
            (r"stem", "features.conv0"),
            (r"block(\d)_layer(\d+)/conv(\d)", lambda b, i, n: f"features.denseblock{b}.denselayer{i}.conv{n}"),
            (r"block(\d)_layer(\d+)/bn(\d)", lambda b, i, n: f"features.denseblock{b}.denselayer{i}.norm{n}"),
            (r"transition(\d)/conv1", lambda b: f"features.transition{b}.conv"),
            (r"transition(\d)/bn1", lambda b: f"features.transition{b}.norm"),
            (r"final_bn", "features.norm_final"),
            (r"fc", "classifier"),
        ),
    }

    def __post_init__(self):
        step = 2 * BLOCKS if self.bottleneck else BLOCKS
        if not isinstance(self.depth, int) or self.depth < 4 + step or (self.depth - 4) % step:
            raise UserError(f"densenet: depth must be 4 + {step} n, such as 100, not {self.depth!r}.")
        if not isinstance(self.growth, int) or self.growth < 1:
            raise UserError(f"densenet: growth must be at least 1, such as 12, not {self.growth!r}.")
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> ModelOutput:
        """Returns logits, the feature maps of stem and blocks, and the pooled vector.

        Args:
          images: Images [batch, height, width, channels], floating-point, at least 4 pixels a side.
          train: Whether to normalise by the batch's statistics instead of the running ones.

        Returns:
          logits [batch, classes]; features stem, stage1, stage2, stage3 [batch, height, width, channels], the outputs
          of stem and blocks, and stage3_preact, the last block after the BatchNorm that follows; pooled
          [batch, channels], the mean after the last ReLU.
        """
        check_images(images, "a densenet", least=4)
        width = 2 * self.growth if self.bottleneck else 16
        x = conv3x3(width, dtype=self.dtype, name="stem")(images)
        features = {"stem": x}
        for block in range(1, BLOCKS + 1):
            for layer in range(1, (self.depth - 4) // (2 * BLOCKS if self.bottleneck else BLOCKS) + 1):
                dense = DenseLayer(self.growth, self.bottleneck, self.dtype, name=f"block{block}_layer{layer}")
                x = dense(x, train)
            features[f"stage{block}"] = x
            if block < BLOCKS:
                width = x.shape[-1] // 2 if self.bottleneck else x.shape[-1]
                x = Transition(width, self.dtype, name=f"transition{block}")(x, train)
        features["stage3_preact"] = batch_norm(self.dtype, train)(name="final_bn")(x)
        pooled = spatial_mean(nn.relu(features["stage3_preact"]))
        logits = nn.Dense(self.num_classes, name="fc")(pooled)
        return ModelOutput(logits, features, pooled)

    def preact_norms(self) -> dict[str, str]:
        """Returns the path of the BatchNorm of the last block's pre-activation; other blocks have several."""
        return {"stage3": "final_bn"}

"""Residual networks for small images (He et al. 2016, section 4.2), as the field of distillation builds them."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from kdjax.errors import UserError
from kdjax.models.initialize import kaiming_normal_fan_out, ones, torch_linear, zeros
from kdjax.types import Array, ModelOutput

# Explicit padding: 'SAME' pads (0, 1) at stride 2 where the field's networks pad (1, 1).
conv3x3 = partial(nn.Conv, kernel_size=(3, 3), padding=1, use_bias=False)
conv1x1 = partial(nn.Conv, kernel_size=(1, 1), padding=0, use_bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution with BatchNorm where the shape changes.

    Attributes:
      width: channels of the output.
      stride: of the first convolution and the shortcut.
      dtype: of the computation; None takes that of parameters and input.
    """

    width: int
    stride: int = 1
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Returns the sum of residual and shortcut [batch, height / stride, width / stride, width], before its ReLU."""
        batch_norm = _batch_norm(self.dtype, train)
        y = conv3x3(self.width, strides=self.stride, dtype=self.dtype, name="conv1")(x)
        y = nn.relu(batch_norm(name="bn1")(y))
        y = conv3x3(self.width, dtype=self.dtype, name="conv2")(y)
        y = batch_norm(name="bn2")(y)
        if self.stride != 1 or x.shape[-1] != self.width:
            x = conv1x1(self.width, strides=self.stride, dtype=self.dtype, name="shortcut")(x)
            x = batch_norm(name="shortcut_bn")(x)
        return y + x


class CifarResNet(nn.Module):
    """A 3x3 stem, stages of basic blocks (the first at full size, each other at half the one before), mean, classifier.

    Its initial weights are those of `init_variables`; `init` of flax gives flax's default ones. The running variance is
    the biased one, as flax has it.

    Attributes:
      num_classes: width of the logits.
      depth: layers with weights, 2 + 2 * stages * blocks a stage: 8, 14, 20, 32, 44, 56, 110 for three stages.
      widths: channels of the stem, then of each stage.
      dtype: of the body; None takes that of parameters and images. Mean and classifier are float32 at least.
    """

    num_classes: int
    depth: int = 20
    widths: Sequence[int] = (16, 16, 32, 64)
    dtype: Any = None

    INITIALIZERS = (
        (r".*(stem|conv1|conv2|shortcut)/kernel", kaiming_normal_fan_out),
        (r".*bn\d?/(scale|var)", ones),
        (r".*bn\d?/(bias|mean)", zeros),
        (r"fc/(kernel|bias)", torch_linear),
    )

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
    def __call__(self, images: Array, train: bool = False) -> ModelOutput:
        """Returns logits, the features of stem and stages, and their mean over the last map.

        Args:
          images: [batch, height, width, channels], floating, of any size.
          train: normalises by the batch's statistics instead of the running ones.

        Returns:
          logits [batch, classes]; features stem, stage1, stage2, ... [batch, height, width, channels] after ReLU, and
          each of them before it (stem_preact, stage1_preact, ...); pooled [batch, channels].
        """
        if images.ndim != 4:
            raise UserError(f"a resnet reads images [batch, height, width, channels], not {images.shape}; try mlp.")
        x = conv3x3(self.widths[0], dtype=self.dtype, name="stem")(images)
        preact = _batch_norm(self.dtype, train)(name="stem_bn")(x)
        x = nn.relu(preact)
        features = {"stem": x, "stem_preact": preact}
        for stage, width in enumerate(self.widths[1:], start=1):
            x, preact = self._stage(x, stage, width, train)
            features |= {f"stage{stage}": x, f"stage{stage}_preact": preact}
        pooled = jnp.mean(x, axis=(1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32))
        logits = nn.Dense(self.num_classes, name="fc")(pooled)
        return ModelOutput(logits, features, pooled)

    def _stage(self, x: Array, stage: int, width: int, train: bool) -> tuple[Array, Array]:
        blocks = (self.depth - 2) // (2 * (len(self.widths) - 1))
        for block in range(1, blocks + 1):
            stride = 2 if block == 1 and stage > 1 else 1
            name = f"stage{stage}_block{block}"
            preact = BasicBlock(width, stride, self.dtype, name=name)(x, train)
            x = nn.relu(preact)
        return x, preact


def _batch_norm(dtype: Any, train: bool) -> partial:
    return partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype)

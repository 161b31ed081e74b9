"""A residual network with auxiliary classifiers of rotated images on its stages (HSAKD, Yang et al. 2021)."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from kdjax.models.initialize import kaiming_normal_fan_out, ones, torch_linear, zeros
from kdjax.models.layers import spatial_mean
from kdjax.models.resnet import BasicBlock, CifarResNet
from kdjax.types import Array, ModelOutput

ROTATIONS = 4


class AuxiliaryResNet(nn.Module):
    """A CIFAR ResNet that also tells, from each stage, class and rotation together.

    In training the batch is run in its four rotations at once, as batch statistics ask for; in evaluation one after the
    other, so that what nobody reads is not computed. Its initial weights are those of `init_variables`.

    Attributes:
      num_classes: width of the logits.
      depth: as in CifarResNet; a branch has as many blocks a stage.
      widths: channels of the stem, then of the three stages.
      dtype: of the bodies; None takes that of parameters and images.
    """

    num_classes: int
    depth: int = 20
    widths: Sequence[int] = (16, 16, 32, 64)
    dtype: Any = None

    STEM = "backbone/stem"
    HEAD = "backbone/fc"
    INITIALIZERS = (
        (r".*(stem|conv1|conv2|shortcut)/kernel", kaiming_normal_fan_out),
        (r".*bn\d?/(scale|var)", ones),
        (r".*bn\d?/(bias|mean)", zeros),
        (r"backbone/fc/(kernel|bias)", torch_linear),
        (r"branch\d_fc/kernel", torch_linear),
        (r"branch\d_fc/bias", zeros),
    )
    TORCH_NAMES = {
        "hsakd": (
            (r"backbone/stem", "backbone.conv1"),
            (r"backbone/stem_bn", "backbone.bn1"),
            (
                r"backbone/stage(\d+)_block(\d+)/((?:conv|bn)\d)",
                lambda s, b, layer: f"backbone.layer{s}.{b - 1}.{layer}",
            ),
            (r"backbone/stage(\d+)_block(\d+)/shortcut", lambda s, b: f"backbone.layer{s}.{b - 1}.downsample.0"),
            (r"backbone/stage(\d+)_block(\d+)/shortcut_bn", lambda s, b: f"backbone.layer{s}.{b - 1}.downsample.1"),
            (r"backbone/fc", "backbone.fc"),
            (
                r"branch(\d)_part(\d)_block(\d+)/((?:conv|bn)\d)",
                lambda i, p, b, layer: f"auxiliary_classifier.block_extractor{i}.{p - 1}.{b - 1}.{layer}",
            ),
            (
                r"branch(\d)_part(\d)_block(\d+)/shortcut",
                lambda i, p, b: f"auxiliary_classifier.block_extractor{i}.{p - 1}.{b - 1}.downsample.0",
            ),
            (
                r"branch(\d)_part(\d)_block(\d+)/shortcut_bn",
                lambda i, p, b: f"auxiliary_classifier.block_extractor{i}.{p - 1}.{b - 1}.downsample.1",
            ),
            (r"branch(\d)_fc", lambda i: f"auxiliary_classifier.fc{i}"),
        ),
    }

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> ModelOutput:
        """Returns the ResNet's output on the images as they are, and what is told of their rotations.

        Args:
          images: [batch, height, width, channels], floating, square.
          train: normalises by the statistics of all four rotations.

        Returns:
          The ResNet's logits, features and pooled; among the features also `rotated` [batch, 4, classes], its logits
          for each rotation, and `auxiliary1`, ... [batch, 4, 4 classes] of each stage, class-major.
        """
        backbone = CifarResNet(self.num_classes, self.depth, self.widths, self.dtype, name="backbone")
        turned = [jnp.rot90(images, turns, (1, 2)) for turns in range(ROTATIONS)]
        if train:
            together = backbone(jnp.concatenate(turned), train)
            parts = [_part(together, i, images.shape[0]) for i in range(ROTATIONS)]
            maps = {name: together.features[name] for name in ("stage1", "stage2", "stage3")}
        else:
            parts = [backbone(part, train) for part in turned]
            names = ("stage1", "stage2", "stage3")
            maps = {name: jnp.concatenate([part.features[name] for part in parts]) for name in names}
        branches = {f"auxiliary{i}": self._branch(i, maps[f"stage{i}"], train) for i in (1, 2, 3)}
        told = {name: _by_example(logits) for name, logits in branches.items()}
        rotated = jnp.stack([part.logits for part in parts], axis=1)
        first = parts[0]
        return first._replace(features={**first.features, "rotated": rotated, **told})

    def _branch(self, number: int, x: Array, train: bool) -> Array:
        """The stages that are still to come, once more, or the last one for the last; mean; classifier."""
        for part, width in enumerate(self.widths[number + 1 :] or self.widths[-1:], start=1):
            for block in range(1, (self.depth - 2) // 6 + 1):
                stride = 2 if block == 1 and number < 3 else 1
                name = f"branch{number}_part{part}_block{block}"
                x = nn.relu(BasicBlock(width, stride, self.dtype, name=name)(x, train))
        return nn.Dense(ROTATIONS * self.num_classes, name=f"branch{number}_fc")(spatial_mean(x))

    def preact_norms(self) -> dict[str, str]:
        """Returns for each stage the path of the last BatchNorm before its ReLU."""
        return {f"stage{s}": f"backbone/stage{s}_block{(self.depth - 2) // 6}/bn2" for s in (1, 2, 3)}


def _part(output: ModelOutput, number: int, batch: int) -> ModelOutput:
    rows = slice(number * batch, (number + 1) * batch)
    features = {name: leaf[rows] for name, leaf in output.features.items()}
    return ModelOutput(output.logits[rows], features, output.pooled[rows])


def _by_example(logits: Array) -> Array:
    """[4 batch, width], rotation by rotation, as [batch, 4, width]."""
    return jnp.swapaxes(logits.reshape(ROTATIONS, -1, logits.shape[-1]), 0, 1)

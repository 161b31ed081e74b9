"""A residual network with auxiliary classifiers of class and rotation on its stages, for HSAKD.

Reference: Yang, An, Cai & Xu, 2021, "Hierarchical Self-supervised Augmented Knowledge Distillation",
https://arxiv.org/abs/2107.13715
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from kdjax.models.initialize import kaiming_normal_fan_out, ones, torch_linear, zeros
from kdjax.models.layers import spatial_mean
from kdjax.models.resnet import BasicBlock, CifarResNet
from kdjax.types import Array, ModelOutput

ROTATIONS = 4  # by 0, 90, 180 and 270 degrees
STAGES = ("stage1", "stage2", "stage3")


class AuxiliaryResNet(nn.Module):
    """A CIFAR ResNet whose three stages each have a branch that predicts an image's class and rotation together.

    In training, the four rotations of a batch are one batch, since batch statistics are taken over all of them. In
    evaluation, they are computed one after the other, so that XLA can leave out those whose output is not used.

    Layers, parameter counts and (by TORCH_NAMES) parameter names are those of HSAKD's code.

    Initialisation by `init_variables`: convolutions from N(0, 2 / fan_out), BatchNorm scale 1 and bias 0, the ResNet's
    classifier uniform in ±1/√fan_in, the branches' classifiers the same with bias 0.

    Attributes:
      num_classes: Number of classes.
      depth: Depth of the ResNet as in CifarResNet, 2 + 6 * blocks a stage; a branch has as many blocks a stage.
      widths: Numbers of channels of the stem and of the three stages.
      dtype: Type of the bodies' computation; None takes that of parameters and images.
    """

    num_classes: int
    depth: int = 20
    widths: Sequence[int] = (16, 16, 32, 64)
    dtype: DTypeLike | None = None

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
        """Returns the ResNet's output on the images as they are, with the predictions of rotated images as features.

        Args:
          images: Images [batch, height, width, channels], floating-point, square.
          train: Whether to normalise by the statistics of all four rotations instead of the running ones.

        Returns:
          The ResNet's logits, features and pooled vector. Further features are `rotated` [batch, 4, classes], the
          logits of each rotation, and `auxiliary1`, `auxiliary2`, `auxiliary3` [batch, 4, 4 classes], the logits of
          each stage's branch, whose entry 4 k + j stands for class k and rotation j.
        """
        backbone = CifarResNet(self.num_classes, self.depth, self.widths, self.dtype, name="backbone")
        rotations = [jnp.rot90(images, turns, (1, 2)) for turns in range(ROTATIONS)]
        if train:
            together = backbone(jnp.concatenate(rotations), train)
            outputs = [of_rotation(together, i, images.shape[0]) for i in range(ROTATIONS)]
            maps = {name: together.features[name] for name in STAGES}
        else:
            outputs = [backbone(rotation, train) for rotation in rotations]
            maps = {name: jnp.concatenate([output.features[name] for output in outputs]) for name in STAGES}
        branches = {f"auxiliary{i}": self._branch(i, maps[f"stage{i}"], train) for i in (1, 2, 3)}
        auxiliary = {name: by_example(logits) for name, logits in branches.items()}
        rotated = jnp.stack([output.logits for output in outputs], axis=1)
        upright = outputs[0]
        return upright._replace(features={**upright.features, "rotated": rotated, **auxiliary})

    def _branch(self, number: int, x: Array, train: bool) -> Array:
        """Returns the logits [4 batch, 4 classes] of a stage's branch.

        A branch repeats the network's later stages, and the branch on the last stage repeats that stage.
        """
        for part, width in enumerate(self.widths[number + 1 :] or self.widths[-1:], start=1):
            for block in range(1, (self.depth - 2) // 6 + 1):
                stride = 2 if block == 1 and number < 3 else 1
                name = f"branch{number}_part{part}_block{block}"
                x = nn.relu(BasicBlock(width, stride, self.dtype, name=name)(x, train))
        return nn.Dense(ROTATIONS * self.num_classes, name=f"branch{number}_fc")(spatial_mean(x))

    def preact_norms(self) -> dict[str, str]:
        """Returns for each stage the path of the last BatchNorm before its ReLU."""
        return {f"stage{s}": f"backbone/stage{s}_block{(self.depth - 2) // 6}/bn2" for s in (1, 2, 3)}


def of_rotation(output: ModelOutput, number: int, batch: int) -> ModelOutput:
    """Returns one rotation's part of an output on all four rotations."""
    rows = slice(number * batch, (number + 1) * batch)
    features = {name: leaf[rows] for name, leaf in output.features.items()}  # a dict in the order of depth
    pooled = None if output.pooled is None else output.pooled[rows]
    return ModelOutput(output.logits[rows], features, pooled)


def by_example(logits: Array) -> Array:
    """Returns logits [4 batch, width], one rotation after the other, as [batch, 4, width]."""
    return jnp.swapaxes(logits.reshape(ROTATIONS, -1, logits.shape[-1]), 0, 1)

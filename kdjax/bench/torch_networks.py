"""kdjax's residual networks for small images in PyTorch: what its speed is compared with.

The layers are those of kdjax.models.resnet and kdjax.models.wrn, and their names those of the tables TORCH_NAMES there,
so that weights can be carried over and outputs compared. torch is imported when a network is made.
"""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from kdjax.errors import UserError

STEM = 16  # output channels of the first convolution of all networks but the x4 ones


class Shape(NamedTuple):
    """What a name of a network says.

    Attributes:
      wide: Whether its blocks begin with BatchNorm and ReLU, as a wrn's do.
      blocks: Blocks in each of the three stages.
      widths: Channels after the first convolution and after each stage.
    """

    wide: bool
    blocks: int
    widths: tuple[int, int, int, int]


def shape_of(name: str) -> Shape:
    """Returns the shape of a network by its name in MODELS.

    Raises:
      UserError: It is not a resnet or wrn for small images.
    """
    if found := re.fullmatch(r"resnet(\d+)(x4)?", name):
        factor = 4 if found[2] else 1
        stem = 32 if found[2] else STEM
        return Shape(False, (int(found[1]) - 2) // 6, (stem, 16 * factor, 32 * factor, 64 * factor))
    if found := re.fullmatch(r"wrn_(\d+)_(\d+)", name):
        factor = int(found[2])
        return Shape(True, (int(found[1]) - 4) // 6, (STEM, 16 * factor, 32 * factor, 64 * factor))
    raise UserError(f"'{name}' is not written in PyTorch; choose a resnet or wrn for small images, such as resnet8.")


def has(names: Iterable[str]) -> bool:
    """Whether all networks of these names are written in PyTorch here."""
    try:
        return bool([shape_of(name) for name in names])
    except UserError:
        return False


def network(name: str, num_classes: int) -> Any:
    """Returns a torch.nn.Module of images [batch, 3, height, width] whose weights are PyTorch's draws.

    Args:
      name: Name of a resnet or wrn in MODELS.
      num_classes: Number of classes.

    Raises:
      UserError: There is no such network here.
    """
    from torch import nn
    from torch.nn import functional as F

    shape = shape_of(name)

    def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
        return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)

    class Block(nn.Module):
        """Two convolutions and a shortcut, with BatchNorm after each convolution."""

        def __init__(self, inputs: int, outputs: int, stride: int):
            super().__init__()
            self.conv1, self.bn1 = convolution(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
            self.conv2, self.bn2 = convolution(outputs, outputs, 3), nn.BatchNorm2d(outputs)
            same = stride == 1 and inputs == outputs
            shortcut = (convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
            self.downsample = None if same else nn.Sequential(*shortcut)

        def forward(self, x: Any) -> Any:
            y = F.relu(self.bn1(self.conv1(x)))
            y = self.bn2(self.conv2(y))
            return F.relu(y + (x if self.downsample is None else self.downsample(x)))

    class WideBlock(nn.Module):
        """BatchNorm, ReLU and a convolution, twice, and a shortcut."""

        def __init__(self, inputs: int, outputs: int, stride: int):
            super().__init__()
            self.bn1, self.conv1 = nn.BatchNorm2d(inputs), convolution(inputs, outputs, 3, stride)
            self.bn2, self.conv2 = nn.BatchNorm2d(outputs), convolution(outputs, outputs, 3)
            self.convShortcut = None if inputs == outputs else convolution(inputs, outputs, 1, stride)

        def forward(self, x: Any) -> Any:
            begun = F.relu(self.bn1(x))
            y = self.conv2(F.relu(self.bn2(self.conv1(begun))))
            return y + (x if self.convShortcut is None else self.convShortcut(begun))

    class Stage(nn.Module):
        """A wrn's stage: its blocks are named below 'layer'."""

        def __init__(self, blocks: list):
            super().__init__()
            self.layer = nn.Sequential(*blocks)

        def forward(self, x: Any) -> Any:
            return self.layer(x)

    class Network(nn.Module):
        """A convolution, three stages, the mean over positions and a linear classifier."""

        def __init__(self):
            super().__init__()
            self.conv1 = convolution(3, shape.widths[0], 3)
            self.bn1 = nn.BatchNorm2d(shape.widths[-1 if shape.wide else 0])
            kind = WideBlock if shape.wide else Block
            self.stages = []
            for stage in (1, 2, 3):
                inputs, outputs = shape.widths[stage - 1 : stage + 1]
                strides = (1 if stage == 1 else 2, *[1] * (shape.blocks - 1))
                blocks = [kind(inputs if i == 0 else outputs, outputs, stride) for i, stride in enumerate(strides)]
                name, made = (
                    (f"block{stage}", Stage(blocks)) if shape.wide else (f"layer{stage}", nn.Sequential(*blocks))
                )
                self.add_module(name, made)
                self.stages.append(name)
            self.fc = nn.Linear(shape.widths[-1], num_classes)

        def forward(self, images: Any) -> Any:
            x = self.conv1(images)
            x = x if shape.wide else F.relu(self.bn1(x))
            for name in self.stages:
                x = getattr(self, name)(x)
            x = F.relu(self.bn1(x)) if shape.wide else x
            return self.fc(x.mean((2, 3)))

    return Network()

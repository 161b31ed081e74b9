"""A network with student-shaped branches, as teachers are trained in "Learning Student-Friendly Teacher Networks".

Reference: Park, Cha, Jeong, Kim & Han, 2021, https://arxiv.org/abs/2102.07650. No released code was found.
"""

import flax.linen as nn

from kdjax.errors import UserError
from kdjax.models import wrapped
from kdjax.models.layers import batch_norm, conv1x1
from kdjax.types import Array, ModelOutput


class StudentFriendly(wrapped.Wrapper):
    """A network, and after each of its stages but the last a branch that goes on as a student would.

    A branch is a 1x1 convolution, BatchNorm and ReLU to the width of the student's stage, and then the student's later
    stages and classifier. Both networks must be of a family that can be entered after a stage, and their stages must
    have the same sizes. The branches serve training alone: the logits, the features and the pooled vector that students
    read are the network's, and XLA leaves out branches that nobody reads.

    Further fields are those of every Wrapper. The student's layers are initialised as in the student.

    Attributes:
      student: The student whose shape the branches have.
    """

    student: nn.Module | None = None

    @property
    def INITIALIZERS(self) -> tuple | None:  # noqa: N802, a table as in the other networks
        """Initial values of both networks and of the layers between them; None where one has no table."""
        return wrapped.initializers((self.network, "body"), (self.student, r"branch\d+_student"))

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> ModelOutput:
        """Returns the network's output, with the branches' logits as the features branch1, branch2, ...

        Args:
          images: Images [batch, height, width, channels], floating-point.
          train: Whether to normalise by the batch's statistics instead of the running ones.

        Returns:
          The network's logits, features and pooled vector. Each further feature is the logits [batch, classes] of a
          branch.

        Raises:
          UserError: The two networks have no stages that line up.
        """
        output = wrapped.output_of(self.bound_network(), images, train)
        widths, own = (_stage_widths(part) for part in (self.student, self.network))
        if len(widths) != len(own):
            raise UserError(f"a body of {len(own)} stages cannot have branches of a student of {len(widths)} stages.")
        branches = {}
        for stage, width in enumerate(widths[:-1], start=1):
            x = conv1x1(width, dtype=self.dtype, name=f"branch{stage}_conv")(output.features[f"stage{stage}"])
            x = nn.relu(batch_norm(self.dtype, train)(name=f"branch{stage}_bn")(x))
            student = wrapped.bound(self, self.student, f"branch{stage}_student")
            branches[f"branch{stage}"] = student(x, train, after=stage).logits
        return output._replace(features={**output.features, **branches})


def _stage_widths(module: nn.Module | None) -> tuple[int, ...]:
    """Returns the numbers of channels of a network's stages."""
    if not hasattr(module, "stage_widths"):
        raise UserError(
            f"{type(module).__name__} has no branches: they are built for the resnets of CIFAR and for wrn. Name two "
            "of one family, such as 'teacher.py:sftn,resnet8,resnet8,digits'."
        )
    return module.stage_widths()

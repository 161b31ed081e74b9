"""Any network of stages with auxiliary classifiers of class and rotation, for HSAKD.

Reference: Yang, An, Cai & Xu, 2021, "Hierarchical Self-supervised Augmented Knowledge Distillation",
https://arxiv.org/abs/2107.13715
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from kdjax.errors import UserError
from kdjax.models import wrapped
from kdjax.models.auxiliary import ROTATIONS, by_example, of_rotation
from kdjax.models.layers import batch_norm, conv1x1, spatial_mean
from kdjax.types import Array, ModelOutput


class BranchedNetwork(wrapped.Wrapper):
    """A network whose stages each have a branch that predicts an image's class and rotation together.

    The branch on a stage repeats all layers of the network after that stage, with weights of its own. The one on the
    last stage is a 1x1 convolution, BatchNorm and ReLU, the mean, and a linear classifier. The four ResNets for which
    the authors' layers are known are AuxiliaryResNet instead.

    Fields and initialisation are those of every Wrapper; a branch is drawn as the network is.
    """

    @property
    def INITIALIZERS(self) -> tuple | None:  # noqa: N802, a table as in the other networks
        """Initial values of the network and its branches; None where the network has no table."""
        return wrapped.initializers((self.network, r"(?:body|branch\d+)"))

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> ModelOutput:
        """Returns the network's output on the images as they are, with the predictions of rotated images as features.

        In training the four rotations of a batch are one batch, since batch statistics are taken over all of them; in
        evaluation they follow one another, so that XLA can leave out those whose output is not used.

        Args:
          images: Images [batch, height, width, channels], floating-point, square.
          train: Whether to normalise by the statistics of all four rotations instead of the running ones.

        Returns:
          The network's logits, features and pooled vector. Further features are `rotated` [batch, 4, classes] and, for
          each stage, `auxiliary1`, ... [batch, 4, 4 classes], whose entry 4 k + j stands for class k and rotation j.

        Raises:
          UserError: The network has no stages, or it cannot be told which of its layers come after a stage.
        """
        rotations = [jnp.rot90(images, turns, (1, 2)) for turns in range(ROTATIONS)]
        parts = _Parts(self, train)
        if train:
            together, joint = parts.run(jnp.concatenate(rotations))
            outputs = [of_rotation(together, i, images.shape[0]) for i in range(ROTATIONS)]
            branches = {name: by_example(logits) for name, logits in joint.items()}
        else:
            runs = [parts.run(rotation) for rotation in rotations]
            outputs = [output for output, _ in runs]
            branches = {name: jnp.stack([joint[name] for _, joint in runs], axis=1) for name in runs[0][1]}
        rotated = jnp.stack([output.logits for output in outputs], axis=1)
        upright = outputs[0]
        return upright._replace(features={**upright.features, "rotated": rotated, **branches})


class _Parts:
    """The body and the branches of a network, as submodules that may be called several times."""

    def __init__(self, owner: BranchedNetwork, train: bool):
        self.owner, self.train = owner, train
        self.body = owner.bound_network()
        self.made: dict[str, Callable[..., Any]] = {}

    def run(self, images: Array) -> tuple[ModelOutput, dict[str, Array]]:
        """Returns the body's output, and name -> logits [batch, 4 classes] of the branches."""
        calls: list[tuple[str, Any]] = []
        with nn.intercept_methods(_recording(self.body.path, calls)):
            output = wrapped.output_of(self.body, images, self.train)
        stages = wrapped.maps_of(output)
        if not stages:
            raise UserError(f"aux puts classifiers on stages, and {type(self.owner.network).__name__} has no map.")
        found = {}
        for number, stage in enumerate(stages[:-1], start=1):
            found[f"auxiliary{number}"] = self._later_layers(number, images, dict(_until(calls, output, stage)))
        last = self._last_branch(len(stages), wrapped.classified(output, stages[-1]))
        return output, {**found, f"auxiliary{len(stages)}": last}

    def _later_layers(self, number: int, images: Array, done: Mapping[str, Any]) -> Array:
        """Returns the logits of a branch: the network again, whose first layers return what those of the body did."""
        joint = ROTATIONS * self.owner.num_classes
        branch = self._make(
            f"branch{number}", lambda name: wrapped.bound(self.owner, self.owner.network, name, num_classes=joint)
        )
        with nn.intercept_methods(_replaying(branch.path, done)):
            return wrapped.output_of(branch, images, self.train).logits

    def _last_branch(self, number: int, x: Array) -> Array:
        name, dtype = f"branch{number}", self.owner.dtype
        conv = self._make(f"{name}_conv", lambda n: conv1x1(x.shape[-1], dtype=dtype, name=n))
        norm = self._make(f"{name}_bn", lambda n: batch_norm(dtype, self.train)(name=n))
        head = self._make(f"{name}_fc", lambda n: nn.Dense(ROTATIONS * self.owner.num_classes, name=n))
        return head(spatial_mean(nn.relu(norm(conv(x)))))

    def _make(self, name: str, make: Callable[[str], Any]) -> Any:
        """Returns a submodule of the owner, made once."""
        if name not in self.made:
            self.made[name] = make(name)
        return self.made[name]


def _recording(path: tuple[str, ...], calls: list[tuple[str, Any]]) -> Callable:
    """Returns an interceptor that notes the output of each layer of the network at a path, in order."""

    def note(call_next: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        output = call_next(*args, **kwargs)
        if context.method_name == "__call__" and context.module.path[:-1] == path:
            calls.append((context.module.name, output))
        return output

    return note


def _replaying(path: tuple[str, ...], done: Mapping[str, Any]) -> Callable:
    """Returns an interceptor that answers for some layers of the network at a path, which so have no parameters."""

    def answer(call_next: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        name, inside = context.module.name, context.module.path[:-1] == path
        known = inside and context.method_name == "__call__" and name in done
        return done[name] if known else call_next(*args, **kwargs)

    return answer


def _until(calls: list[tuple[str, Any]], output: ModelOutput, stage: str) -> list[tuple[str, Any]]:
    """Returns the calls up to the layer whose output is a stage's map, or else the map before its ReLU."""
    for name in (stage, f"{stage}_preact"):
        wanted = output.features.get(name)
        ends = [i for i, (_, made) in enumerate(calls) if wanted is not None and _has(made, wanted)]
        if ends:
            return calls[: ends[-1] + 1]
    raise UserError(f"aux: no layer's output is the map '{stage}', so that it is not known which layers come after it.")


def _has(made: Any, wanted: Array) -> bool:
    leaves = made if isinstance(made, tuple) else (made,)
    return any(leaf is wanted for leaf in leaves)

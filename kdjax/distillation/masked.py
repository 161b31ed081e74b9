"""ViTKD's trainable part: linear maps of a student's tokens, and a generation of the teacher's last map."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from kdjax.distillation.adapters import Adapter, Arguments
from kdjax.distillation.stages import last_map
from kdjax.errors import UserError
from kdjax.models.initialize import TORCH_INITIALIZERS, zeros
from kdjax.models.layers import conv3x3
from kdjax.randomness import KEY_STREAMS
from kdjax.types import Array, ModelOutput

SHALLOW = ("tokens1", "tokens2")  # the patches after the first two blocks


class MaskedGeneration(Adapter):
    """Linear maps of the student's first two blocks, and two 3x3 convolutions that generate masked patches.

    Yang et al., "ViTKD: Practical Guidelines for ViT feature knowledge distillation", 2022.

    Attributes:
      masked: Share of the patches of the student's last map that are replaced by a trained token.
    """

    masked: float = 0.5

    INITIALIZERS = ((r"mask_token", zeros), *TORCH_INITIALIZERS)

    @nn.compact
    def __call__(self, given: Arguments) -> dict:
        """Returns the tokens of both networks, the generated and the teacher's map, and which patches were masked.

        Raises:
          UserError: A network is no vision transformer, or their grids of patches differ.
        """
        (own, x), (taught, target) = (_tokens(given[f"{side}_output"], side) for side in ("student", "teacher"))
        if x.shape[:3] != target.shape[:3]:
            raise UserError(
                f"vitkd compares patch by patch: the student has {x.shape[1]}x{x.shape[2]} patches and the teacher "
                f"{target.shape[1]}x{target.shape[2]}; name networks of equal config.model.args.patch."
            )
        width = target.shape[-1]
        shallow = tuple(nn.Dense(width, name=f"align{i}")(tokens) for i, tokens in enumerate(own, start=1))
        hidden = hidden_patches(given["seed"], given["epoch"], given["index"], x.shape[1:3], self.masked)
        token = self.param("mask_token", nn.initializers.zeros, (width,))
        y = jnp.where(hidden[..., None], token, nn.Dense(width, name="align_last")(x))
        y = nn.relu(conv3x3(width, use_bias=True, name="generate1")(y))
        return {
            "student_tokens": shallow,
            "teacher_tokens": taught,
            "generated_map": conv3x3(width, use_bias=True, name="generate2")(y),
            "teacher_map": target,
            "masked": hidden,
        }


def _tokens(output: ModelOutput, side: str) -> tuple[tuple[Array, ...], Array]:
    """Returns the tokens of a network's first blocks, and its last map."""
    deepest = last_map(output)
    if deepest is None or not all(name in output.features for name in SHALLOW):
        raise UserError(f"vitkd compares vision transformers, and the {side} is none; name deit_tiny or another.")
    return tuple(output.features[name] for name in SHALLOW), deepest


def hidden_patches(seed: Array, epoch: Array, index: Array, grid: tuple[int, ...], share: float) -> Array:
    """Returns which patches are masked, [batch, *grid] bool: the same number in each example, drawn anew each epoch.

    Args:
      seed: [] integer in [0, 2^32), the run's.
      epoch: [] integer.
      index: [batch] rows of the examples in the full data set.
      grid: Height and width of the grid of patches.
      share: Share of the patches that are masked; their number is rounded up.
    """
    key = jax.random.key(jnp.asarray(seed, jnp.uint32), impl="threefry2x32")
    key = jax.random.fold_in(jax.random.fold_in(key, KEY_STREAMS["patches"]), epoch)
    patches = grid[0] * grid[1]
    seen = int(patches * (1 - share))
    order = jax.vmap(lambda row: jax.random.permutation(jax.random.fold_in(key, row), patches))(index)
    return (order >= seen).reshape(-1, *grid)

"""Vision transformers: ViT, DeiT and DeiT III.

References: Dosovitskiy et al., 2021, "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale",
https://arxiv.org/abs/2010.11929; Touvron et al., 2021, "Training Data-Efficient Image Transformers & Distillation
through Attention", https://arxiv.org/abs/2012.12877; Touvron, Cord & Jegou, 2022, "DeiT III: Revenge of the ViT",
https://arxiv.org/abs/2204.07118
"""

import math
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from kdjax.errors import UserError
from kdjax.models.drop_path import drop_path
from kdjax.models.initialize import Shape, Table, ones, torch_linear, zeros
from kdjax.models.layers import check_images
from kdjax.types import Array, ModelOutput

EPSILON = 1e-6  # of LayerNorm
STAGES = 4  # number of parts of equal depth, each of which ends with a feature
POSITIONS = ("pos_embed", "encoder.pos_embedding")  # names of the position embeddings in PyTorch state dicts


def normal_002(generator: np.random.Generator, shape: Shape, kernel: Shape | None) -> np.ndarray:
    """Draws from N(0, 0.02²); timm truncates it at ±2, a hundred standard deviations, which makes no difference."""
    del kernel
    return 0.02 * generator.standard_normal(shape)


def normal_tiny(generator: np.random.Generator, shape: Shape, kernel: Shape | None) -> np.ndarray:
    """Draws from N(0, (1e-6)²)."""
    del kernel
    return 1e-6 * generator.standard_normal(shape)


class Block(nn.Module):
    """A transformer block: attention and a two-layer perceptron, each after a LayerNorm and added to its input.

    Attributes:
      heads: Number of attention heads, which divides the tokens' width.
      mlp_width: Width of the perceptron's hidden layer.
      layer_scale: Whether each branch is multiplied by a learned vector.
      drop_path: Probability that a branch is left out in training, example by example.
      number: Number of the block, from 0; it separates the random draws of the blocks.
      dtype: Type of the computation; None takes that of parameters and input.
    """

    heads: int
    mlp_width: int
    layer_scale: bool
    drop_path: float
    number: int
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Array, keys: Array | None) -> Array:
        """Returns [batch, tokens, dim]; `keys` are random keys [batch] for drop-path, or None to leave nothing out."""
        y = self._attention(nn.LayerNorm(EPSILON, dtype=self.dtype, name="norm1")(x))
        x = x + self._branch(y, "gamma1", keys, 2 * self.number)
        y = nn.LayerNorm(EPSILON, dtype=self.dtype, name="norm2")(x)
        y = nn.gelu(nn.Dense(self.mlp_width, dtype=self.dtype, name="mlp1")(y), approximate=False)
        y = nn.Dense(x.shape[-1], dtype=self.dtype, name="mlp2")(y)
        return x + self._branch(y, "gamma2", keys, 2 * self.number + 1)

    def _branch(self, y: Array, gamma: str, keys: Array | None, draw: int) -> Array:
        """Returns a branch's output after its scale, the parameter named `gamma`, and drop-path."""
        if self.layer_scale:
            y = y * self.param(gamma, nn.initializers.ones, (y.shape[-1],)).astype(y.dtype)
        return y if keys is None or not self.drop_path else drop_path(y, keys, draw, self.drop_path)

    def _attention(self, x: Array) -> Array:
        """Returns multi-head self-attention [batch, tokens, dim], with scores and softmax in float32 or wider."""
        batch, tokens, dim = x.shape
        qkv = nn.Dense(3 * dim, dtype=self.dtype, name="qkv")(x)
        q, k, v = jnp.moveaxis(qkv.reshape(batch, tokens, 3, self.heads, dim // self.heads), 2, 0)
        exact = jnp.promote_types(q.dtype, jnp.float32)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q / math.sqrt(dim // self.heads), k, preferred_element_type=exact)
        scores = nn.softmax(scores)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", scores.astype(v.dtype), v).reshape(batch, tokens, dim)
        return nn.Dense(dim, dtype=self.dtype, name="proj")(mixed)


def _timm(gamma1: str, gamma2: str) -> tuple:
    """Returns the rules of timm's parameter names, given its names of the two layer scales."""
    return (
        (r"stem", "patch_embed.proj"),
        (r"(cls_token|pos_embed)", lambda name: name),
        (r"block(\d+)/(norm1|norm2)", lambda i, layer: f"blocks.{i - 1}.{layer}"),
        (r"block(\d+)/(qkv|proj)", lambda i, layer: f"blocks.{i - 1}.attn.{layer}"),
        (r"block(\d+)/mlp(\d)", lambda i, layer: f"blocks.{i - 1}.mlp.fc{layer}"),
        (r"block(\d+)/gamma1", lambda i: f"blocks.{i - 1}.{gamma1}"),
        (r"block(\d+)/gamma2", lambda i: f"blocks.{i - 1}.{gamma2}"),
        (r"norm", "norm"),
        (r"fc", "head"),
    )


def _torchvision(mlp: Callable[[int], str]) -> tuple:
    """Returns the rules of torchvision's parameter names, given its name of the nth layer of a perceptron."""
    return (
        (r"stem", "conv_proj"),
        (r"cls_token", "class_token"),
        (r"pos_embed", "encoder.pos_embedding"),
        (r"block(\d+)/norm(\d)", lambda i, n: f"encoder.layers.encoder_layer_{i - 1}.ln_{n}"),
        (r"block(\d+)/qkv", lambda i: f"encoder.layers.encoder_layer_{i - 1}.self_attention.in_proj_{{}}"),
        (r"block(\d+)/proj", lambda i: f"encoder.layers.encoder_layer_{i - 1}.self_attention.out_proj"),
        (r"block(\d+)/mlp(\d)", lambda i, n: f"encoder.layers.encoder_layer_{i - 1}.mlp.{mlp(n)}"),
        (r"block(\d+)/gamma(\d)", lambda i, n: f"encoder.layers.encoder_layer_{i - 1}.gamma_{n}"),
        (r"norm", "encoder.ln"),
        (r"fc", "heads.head"),
    )


class VisionTransformer(nn.Module):
    """Tokens of image patches and a class token, position embeddings, transformer blocks, LayerNorm, a classifier.

    Layers, parameter counts and (by TORCH_NAMES) parameter names are those of timm, DeiT and torchvision. Drop-path is
    the only random part; it draws from keys that the caller passes.

    Initialisation by `init_variables`, as in timm: the patch embedding uniform in ±1/√fan_in, other weights and the
    position embeddings from N(0, 0.02^2), the class token from N(0, 1e-12), biases 0, LayerNorm scale 1, layer scales
    `layer_scale`.

    Attributes:
      num_classes: Number of classes.
      patch: Pixels a side of a patch; it divides the sides of the images.
      dim: Width of the tokens.
      depth: Number of blocks, at least 4.
      heads: Number of attention heads, which divides `dim`.
      mlp_ratio: Hidden width of the perceptrons over `dim`.
      layer_scale: Initial value of the vectors that multiply each branch (DeiT III); None for no such vectors.
      class_position: Whether the class token has a position embedding too; in DeiT III it has none.
      drop_path: Drop-path rate of the last block, in [0, 1); it rises linearly from 0 in the first.
      dtype: Type of the body's computation; None takes that of parameters and images. Softmax and classifier are
        float32 or wider.
    """

    num_classes: int
    patch: int = 16
    dim: int = 192
    depth: int = 12
    heads: int = 3
    mlp_ratio: float = 4.0
    layer_scale: float | None = None
    class_position: bool = True
    drop_path: float = 0.0
    dtype: DTypeLike | None = None

    READS_MEAN = False  # the classifier reads the class token
    TORCH_NAMES = {
        "timm": _timm("ls1.gamma", "ls2.gamma"),
        "deit": _timm("gamma_1", "gamma_2"),
        "torchvision": _torchvision(lambda n: f"{3 * n - 3}"),
        "torchvision_2022": _torchvision(lambda n: f"linear_{n}"),  # the names in the first released files
    }

    @property
    def INITIALIZERS(self) -> Table:  # noqa: N802, a table as in the other networks
        """Initial values as in timm; a property, since they depend on `layer_scale`."""
        return (
            (r"stem/(kernel|bias)", torch_linear),
            (r"cls_token", normal_tiny),
            (r"pos_embed", normal_002),
            (r"(.*/)?norm\d?/scale", ones),
            (r".*/kernel", normal_002),
            (r".*/bias", zeros),
            (r".*/gamma\d", lambda generator, shape, kernel: np.full(shape, self.layer_scale)),
        )

    def __post_init__(self):
        for name in ("patch", "dim", "depth", "heads"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise UserError(f"vit: {name} must be a whole number of at least 1, not {value!r}.")
        for name, value in (("mlp_ratio", self.mlp_ratio), ("layer_scale", self.layer_scale or 0.0)):
            if not isinstance(value, int | float):
                raise UserError(f"vit: {name} must be a number, not {value!r}.")
        if self.mlp_ratio * self.dim < 1:
            raise UserError(f"vit: mlp_ratio must be above 0, such as 4, not {self.mlp_ratio}.")
        if self.dim % self.heads:
            raise UserError(f"vit: the {self.heads} heads must divide dim {self.dim}; choose another of the two.")
        if self.depth < STAGES:
            raise UserError(f"vit: depth must be at least {STAGES}, not {self.depth}.")
        if not 0 <= self.drop_path < 1:
            raise UserError(f"vit: drop_path must be in [0, 1), not {self.drop_path}.")
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Array, train: bool = False, keys: Array | None = None) -> ModelOutput:
        """Returns logits, token maps at four depths, and the class token.

        Args:
          images: Images [batch, height, width, channels], floating-point, of the size that the position embeddings were
            trained on; `patch` divides height and width.
          train: Whether this is training, in which branches are left out if `drop_path` is above 0.
          keys: Random keys [batch], one for each example, for drop-path.

        Returns:
          logits [batch, classes]; features stem (the patch embeddings) and stage1, ..., stage4 (after each quarter of
          the blocks) [batch, height / patch, width / patch, dim], and tokens1 and tokens2 (the patches after the first
          two blocks) [batch, patches, dim]; pooled [batch, dim], the class token.

        Raises:
          UserError: `patch` does not divide the images' sides, or drop-path is used without keys.
        """
        self._check(images, train, keys)
        maps = self._patches(images)
        x = self._tokens(maps)
        rates = np.linspace(0, self.drop_path, self.depth) if train else np.zeros(self.depth)
        ends = {math.ceil(self.depth * quarter / STAGES): quarter for quarter in range(1, STAGES + 1)}
        features = {"stem": maps}
        for i in range(1, self.depth + 1):
            mlp_width, rate = int(self.dim * self.mlp_ratio), float(rates[i - 1])
            scaled = self.layer_scale is not None
            x = Block(self.heads, mlp_width, scaled, rate, i - 1, self.dtype, name=f"block{i}")(x, keys)
            if i in ends:
                features[f"stage{ends[i]}"] = x[:, 1:].reshape(maps.shape)
            if i <= 2:
                features[f"tokens{i}"] = x[:, 1:]
        x = nn.LayerNorm(EPSILON, dtype=self.dtype, name="norm")(x)
        pooled = x[:, 0].astype(jnp.promote_types(x.dtype, jnp.float32))
        logits = nn.Dense(self.num_classes, name="fc")(pooled)
        return ModelOutput(logits, features, pooled)

    def _patches(self, images: Array) -> Array:
        """Returns the patch embeddings [batch, height / patch, width / patch, dim]."""
        size = (self.patch, self.patch)
        return nn.Conv(self.dim, size, strides=size, padding=0, dtype=self.dtype, name="stem")(images)

    def _tokens(self, maps: Array) -> Array:
        """Returns the tokens [batch, 1 + patches, dim], the class token first, with their position embeddings."""
        batch, patches = maps.shape[0], maps.shape[1] * maps.shape[2]
        x = maps.reshape(batch, patches, self.dim)
        class_token = self.param("cls_token", nn.initializers.zeros, (1, 1, self.dim)).astype(x.dtype)
        class_token = jnp.broadcast_to(class_token, (batch, 1, self.dim))
        positions = patches + 1 if self.class_position else patches
        if (known := self.get_variable("params", "pos_embed")) is not None and known.shape[1] != positions:
            raise UserError(
                f"a vit with {known.shape[1]} position embeddings cannot read images of {patches} patches; "
                "set config.data.size to the image size that its weights were trained on."
            )
        embedding = self.param("pos_embed", nn.initializers.zeros, (1, positions, self.dim)).astype(x.dtype)
        if self.class_position:
            return jnp.concatenate([class_token, x], axis=1) + embedding
        return jnp.concatenate([class_token, x + embedding], axis=1)

    def _check(self, images: Array, train: bool, keys: Array | None) -> None:
        """Refuses images and keys that this network cannot use."""
        check_images(images, "a vit", least=self.patch)
        if images.shape[1] % self.patch or images.shape[2] % self.patch:
            raise UserError(
                f"a vit with patches of {self.patch} pixels needs images whose sides are multiples of {self.patch}, "
                f"not {images.shape}; set config.data.size."
            )
        if train and self.drop_path and keys is None:
            raise UserError("a vit with drop_path needs `keys`, one random key an example, when train=True.")
        if keys is not None and keys.shape[:1] != images.shape[:1]:
            raise UserError(f"a vit needs one key an example, {images.shape[0]} of them, not {keys.shape}.")

    def image_side(self, state: Mapping[str, np.ndarray]) -> int:
        """Returns the side of the square images for which a PyTorch state dict has position embeddings."""
        found = [state[name].shape[1] for name in POSITIONS if name in state]
        patches = found[0] - self.class_position if found else 4
        return self.patch * max(math.isqrt(patches), 1)

    def preact_norms(self) -> dict[str, str]:
        """Returns {}, since there is no BatchNorm."""
        return {}

"""CRD's trainable part: two embeddings, and the memories that they are scored against."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kdjax import losses
from kdjax.data import Dataset
from kdjax.distillation import memory
from kdjax.distillation.adapters import Adapter, Arguments
from kdjax.losses._maps import normalized
from kdjax.types import Array


class Contrast(Adapter):
    """Embeds both networks' vectors on the sphere and scores each against a memory of the other's embeddings.

    Tian et al., "Contrastive Representation Distillation" (CRD), ICLR 2020.

    Attributes:
      dim: Dimension of the embeddings.
      negatives: Number of negatives for each example, all of other classes.
      momentum: Weight of the old embedding when an example comes again.
      temperature: Scores are divided by it.
      dtype: Type of the memories, 'float32' or 'bfloat16'.
    """

    dim: int = 128
    negatives: int = 16384
    momentum: float = 0.5
    temperature: float = 0.07
    dtype: str = "float32"

    def first_memory(self, seed: int, dataset: Dataset | None) -> dict[str, np.ndarray]:
        """Returns two memories of the training rows, the tables for drawing negatives, and unset normalisers (-1).

        Raises:
          ValueError: There is no data set.
        """
        if dataset is None:
            raise ValueError("the memory of CRD needs the data set that it remembers.")
        rows = dataset.splits["train"]
        memory.announce(len(rows), self.dim, self.dtype)
        banks = [memory.first_bank((seed + side) & 0xFFFFFFFF, len(rows), self.dim, self.dtype) for side in (0, 1)]
        table = memory.class_table(dataset.labels, rows, dataset.num_classes)
        exact = jax.dtypes.canonicalize_dtype(np.float64)
        return {"student": banks[0], "teacher": banks[1], "normalizers": np.full(2, -1.0, exact), **table}

    @nn.compact
    def __call__(self, given: Arguments) -> dict:
        """Returns the scores of both directions, their normalisers, and the number of remembered examples."""
        student, teacher = (
            normalized(nn.Dense(self.dim, name=side)(given[f"{side}_embeddings"])) for side in ("student", "teacher")
        )
        if not self.has_variable("memory", "student"):  # flax asks for the parameters alone
            return {}
        memories = {name: self.get_variable("memory", name) for name in self.variables["memory"]}
        places = memories["slot"][given["index"]]
        negatives = memory.draw_negatives(
            given["seed"], given["epoch"], given["index"], given["classes"], memories, self.negatives
        )
        rows = jnp.concatenate([places[:, None], negatives], axis=1)
        examples = memories["order"].shape[0]
        scores = (
            losses.contrast_scores(student, memories["teacher"], rows, temperature=self.temperature),
            losses.contrast_scores(teacher, memories["student"], rows, temperature=self.temperature),
        )
        normalizers = self._normalizers(memories["normalizers"], scores, examples, given["axis_name"])
        self._remember(memories, places, student, teacher, normalizers, given["axis_name"])
        return {
            "student_scores": scores[0],
            "teacher_scores": scores[1],
            "normalizers": tuple(normalizers),
            "examples": examples,
        }

    def _normalizers(self, old: Array, scores: tuple[Array, Array], examples: int, axis_name: str | None) -> Array:
        """Returns the normalisers, which the first batch of all devices sets for the rest of the run."""
        first = jnp.stack([losses.first_normalizer(jax.lax.stop_gradient(s), examples=examples) for s in scores])
        first = first if axis_name is None else jax.lax.pmean(first, axis_name)
        return jnp.where(old > 0, old, first.astype(old.dtype))

    def _remember(
        self,
        old: dict[str, Array],
        places: Array,
        student: Array,
        teacher: Array,
        normalizers: Array,
        axis_name: str | None,
    ) -> None:
        """Writes the embeddings of the global batch to the memories, identically on every device."""
        written = (places, jax.lax.stop_gradient(student), jax.lax.stop_gradient(teacher))
        if axis_name is not None:
            written = jax.lax.all_gather(written, axis_name, axis=0, tiled=True)
        places, student, teacher = written
        self.put_variable("memory", "student", memory.remember(old["student"], places, student, self.momentum))
        self.put_variable("memory", "teacher", memory.remember(old["teacher"], places, teacher, self.momentum))
        self.put_variable("memory", "normalizers", normalizers)

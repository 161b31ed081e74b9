"""kdjax: knowledge distillation in JAX, where the teacher is trained to teach."""

__version__ = "0.1.0"

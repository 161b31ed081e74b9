"""kdjax: knowledge distillation in JAX. Python finds `train`, `load`, `list_runs` and `load_config` here."""

import sys

__version__ = "0.1.0"

if sys.argv[:1] == ["-m"]:  # a command: it can be stopped from its first line on, so nothing else is imported before
    from kdjax import signals

    signals.start()

_LAZY = ("list_runs", "load", "load_config", "train")  # of kdjax.api
__all__ = ["__version__", *_LAZY]


def __getattr__(name: str) -> object:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module("kdjax.api"), name)
    raise AttributeError(f"module 'kdjax' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})

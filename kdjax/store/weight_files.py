"""The place of `kdjax.interop.weight_files` in earlier versions, for scripts that still name it."""

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    return getattr(importlib.import_module("kdjax.interop.weight_files"), name)

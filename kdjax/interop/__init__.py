"""Weights in the files and under the names of other frameworks."""

from kdjax.interop.weight_files import file_sha256, read_weights, write_weights

__all__ = ["file_sha256", "read_weights", "write_weights"]

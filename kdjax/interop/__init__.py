"""Files of other frameworks: readers, writers and name tables."""

from kdjax.interop.weight_files import file_sha256, read_weights, write_weights

__all__ = ["file_sha256", "read_weights", "write_weights"]

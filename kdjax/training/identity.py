"""Values as keys of a cache, by identity: arrays and records of arrays cannot be hashed by their content."""

from typing import Any


class ByIdentity:
    """Hashes a value by identity and keeps it alive, so that what is made from it can be cached.

    Attributes:
      value: The value.
    """

    def __init__(self, value: Any):
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ByIdentity) and self.value is other.value

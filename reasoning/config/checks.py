"""Checks of a configuration's fields, whose errors name field, value and what is accepted."""

from __future__ import annotations

import dataclasses
import math
import reprlib
from collections.abc import Container
from typing import Any

LARGEST_INTEGER = 2**63 - 1
"""Integers above it fit neither a tensor's shape nor a file format."""
LARGEST_NUMBER = 3.4e38
"""Numbers above it are infinite in single precision."""
_LONGEST_NAME = 120


class _Short(reprlib.Repr):
    """`repr` of values from outside: long strings, lists and integers are cut in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = 60

    def repr_int(self, x: int, level: int) -> str:
        """Describe integers by their size where Python refuses to convert them to decimal."""
        return super().repr_int(x, level) if x.bit_length() < 4096 else f"<integer of {x.bit_length()} bits>"


shortened = _Short().repr


def brief(name: str) -> str:
    """Return a name that a file gives, cut where it is too long for an error message."""
    return name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}..."


def check_types(config: Any, prefix: str = "", zero_allowed: Container[str] = ()) -> None:
    """Check that the fields of a configuration have values of their declared types.

    Args:
        config: a dataclass whose annotations are strings.
        prefix: put before a field's name to make the key that `config.json` has for it.
        zero_allowed: names of the fields whose whole numbers may be 0, which stands for "none" or counts from 0; all
            other whole numbers are at least 1.

    Raises:
        ValueError: for the first field whose value is of another type or out of range.
    """
    for field in dataclasses.fields(config):
        name, value = prefix + field.name, getattr(config, field.name)
        least = 0 if field.name in zero_allowed else 1
        if field.type == "int" or (field.type == "int | None" and value is not None):
            require(is_whole(value, least), name, value, f"a whole number of at least {least}")
            require(value <= LARGEST_INTEGER, name, value, f"a whole number of at most {LARGEST_INTEGER}")
        elif field.type == "tuple[int, ...]":
            whole = isinstance(value, tuple) and all(is_whole(item, least) for item in value)
            require(whole, name, value, f"a list of whole numbers of at least {least}")
            small = max(value, default=0) <= LARGEST_INTEGER
            require(small, name, value, f"whole numbers of at most {LARGEST_INTEGER}")
        elif field.type == "float":
            accepted = f"a number, not negative, of at most {LARGEST_NUMBER}"
            require(is_number(value) and value >= 0, name, value, accepted)
        elif field.type == "bool":
            require(isinstance(value, bool), name, value, "true or false")


def is_whole(value: Any, least: float = -math.inf) -> bool:
    """Whether a value is an integer, and no boolean, of at least `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_number(value: Any) -> bool:
    """Whether a value is a number, and no boolean, that single precision can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST_NUMBER


def require(condition: bool, name: str, value: Any, accepted: str) -> None:
    """Raise ValueError naming a field, its value and what is accepted, unless the condition holds."""
    if not condition:
        raise ValueError(f"{brief(name)}: {shortened(value)} is not supported; expected {accepted}")

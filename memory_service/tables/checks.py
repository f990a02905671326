"""Checks of values from outside, declared field by field; an error names the field, its value and the remedy.

fields = {"batch": whole(0, 2**31 - 1), "digest": text(r"[0-9a-f]{32}", "give 32 lower-case hex digits")}
check_fields("block 3", {"batch": 0.5, "digest": "..."}, fields)
# ValueError: block 3: batch=0.5 is not possible: use a whole number from 0 to 2147483647
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from enum import Enum
from reprlib import Repr
from typing import Any

Check = Callable[[Any], Any]
"""Converts a value to its proper type. Raises ValueError, whose message is the remedy, if the value is not possible."""

_REPR = Repr()
_REPR.maxstring = _REPR.maxother = 140


def whole(low: int, high: int) -> Check:
    """Accept a Python or NumPy integer within bounds, but neither a bool nor a float."""
    remedy = f"use a whole number from {low} to {high}"

    def check(value: Any) -> int:
        try:
            number = operator.index(value)
        except TypeError:
            raise ValueError(remedy) from None
        if isinstance(value, bool) or not low <= number <= high:
            raise ValueError(remedy)
        return number

    return check


def wholes(low: int, high: int) -> Check:
    """Accept an iterable of whole numbers within bounds, and make it a tuple."""
    item = whole(low, high)

    def item_at(index: int, number: Any) -> int:
        try:
            return item(number)
        except ValueError as error:
            raise ValueError(f"item {index} is {shorten(number)}, {error}") from None

    def check(value: Any) -> tuple[int, ...]:
        if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
            raise ValueError(f"give a list of whole numbers from {low} to {high}")
        return tuple(item_at(index, number) for index, number in enumerate(value))

    return check


def text(pattern: str, remedy: str) -> Check:
    """Accept a string that matches a regular expression from beginning to end."""
    expression = re.compile(pattern)

    def check(value: Any) -> str:
        if not isinstance(value, str) or not expression.fullmatch(value):
            raise ValueError(remedy)
        return value

    return check


def choice(options: type[Enum]) -> Check:
    """Accept a member of an enumeration or the value of a member, and make it the member."""

    def check(value: Any) -> Enum:
        try:
            return options(value)
        except ValueError:
            raise ValueError(f"use one of {', '.join(str(option.value) for option in options)}") from None

    return check


def items(value: Any) -> list[Any]:
    """Accept a list, without checking its items."""
    if not isinstance(value, list):
        raise ValueError("give a list")
    return value


def check_fields(owner: str, values: Mapping[str, Any], checks: Mapping[str, Check]) -> dict[str, Any]:
    """Check fields and convert them to their proper types.

    Args:
        owner: what the fields belong to, which begins the message of an error; "" to leave it out.
        values: values by field; fields that `checks` does not name are ignored.
        checks: check by field.

    Returns:
        The converted values of the fields in `checks`.

    Raises:
        ValueError: a value is not possible.
        KeyError: a field is missing.
    """
    checked = {}
    for field, check in checks.items():
        try:
            checked[field] = check(values[field])
        except ValueError as error:
            raise refusal(owner, field, values[field], str(error)) from None
    return checked


def refusal(owner: str, field: str, value: Any, remedy: str) -> ValueError:
    """Error for a field with an impossible value."""
    return ValueError(f"{owner}{': ' if owner else ''}{field}={shorten(value)} is not possible: {remedy}")


def check_keys(owner: str, values: Any, known: Collection[str]) -> Mapping[str, Any]:
    """Check that a JSON value is an object with exactly the known keys, and return it.

    Raises:
        ValueError: the value is not an object, lacks a key or has an unknown one.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{owner} is {shorten(values)}: give an object with the fields {sorted(known)}")
    if unknown := sorted(values.keys() - known):
        raise ValueError(f"unknown {owner} fields {shorten(unknown)}: known are {sorted(known)}")
    if missing := sorted(known - values.keys()):
        raise ValueError(f"{owner} lacks the fields {missing}")
    return values


def shorten(value: Any) -> str:
    """The repr of a value, shortened to about one line however long or deep the value is."""
    return _REPR.repr(value)

"""Checks of values from outside, declared field by field: a refusal names the field, its value and the remedy.

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
"""Returns a value in its proper type. Raises ValueError, whose message is the remedy, for a value that is refused."""

_REPR = Repr()
_REPR.maxstring = _REPR.maxother = 140


def whole(low: int, high: int) -> Check:
    """A whole number within bounds, of Python or NumPy; neither a bool nor a float."""
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
    """A sequence of whole numbers within bounds, as a tuple."""
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
    """A string of which the whole matches a regular expression."""
    expression = re.compile(pattern)

    def check(value: Any) -> str:
        if not isinstance(value, str) or not expression.fullmatch(value):
            raise ValueError(remedy)
        return value

    return check


def choice(options: type[Enum]) -> Check:
    """A member of an enumeration, or the value of one."""

    def check(value: Any) -> Enum:
        try:
            return options(value)
        except ValueError:
            raise ValueError(f"use one of {', '.join(str(option.value) for option in options)}") from None

    return check


def items(value: Any) -> list[Any]:
    """A list, whatever is in it."""
    if not isinstance(value, list):
        raise ValueError("give a list")
    return value


def check_fields(owner: str, values: Mapping[str, Any], checks: Mapping[str, Check]) -> dict[str, Any]:
    """The fields that `checks` names, each in its proper type.

    Raises:
        ValueError: a field is refused; the message begins with `owner`, if there is one.
    """
    checked = {}
    for field, check in checks.items():
        try:
            checked[field] = check(values[field])
        except ValueError as error:
            raise refusal(owner, field, values[field], str(error)) from None
    return checked


def refusal(owner: str, field: str, value: Any, remedy: str) -> ValueError:
    """The error for a field with an impossible value."""
    return ValueError(f"{owner}{': ' if owner else ''}{field}={shorten(value)} is not possible: {remedy}")


def check_keys(owner: str, values: Any, known: Collection[str]) -> Mapping[str, Any]:
    """A JSON object that has exactly the known keys.

    Raises:
        ValueError: it is no object, lacks a key or has one more.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{owner} is {shorten(values)}: give an object with the fields {sorted(known)}")
    if unknown := sorted(values.keys() - known):
        raise ValueError(f"unknown {owner} fields {shorten(unknown)}: known are {sorted(known)}")
    if missing := sorted(known - values.keys()):
        raise ValueError(f"{owner} lacks the fields {missing}")
    return values


def shorten(value: Any) -> str:
    """The repr of a value, however long or deep it is, in about a line."""
    return _REPR.repr(value)

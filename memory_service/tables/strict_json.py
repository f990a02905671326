"""Strict parsing of JSON from outside: ambiguous or unsafe documents are refused."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from memory_service.tables.checks import shorten


def parse_json(content: bytes) -> Any:
    """Parse a JSON document in UTF-8.

    Raises:
        ValueError: the document is not valid JSON, is nested too deeply, repeats a key in one object, or contains NaN
            or Infinity.
    """
    try:
        return json.loads(content.decode(), object_pairs_hook=_object, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {shorten(twice)} occurs twice in one object")
    return values


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")

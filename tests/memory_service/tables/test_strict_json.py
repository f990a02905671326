from __future__ import annotations

import json

import pytest

from memory_service.tables.strict_json import parse_json


def test_plain_json_is_read_as_the_standard_library_reads_it() -> None:
    value = {"a": [1, -2.5, "é", None, True], "b": {"c": {}}}
    assert parse_json(json.dumps(value).encode()) == value


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 200_000, "nested too deeply"),
        (b'{"a": 1, "b": {"c": 1, "d": 2, "c": 3}}', "key 'c' occurs twice"),
        (b"[NaN]", "NaN is not a number"),
        (b"[-Infinity]", "-Infinity is not a number"),
        (b'{"a": 1', "delimiter"),
        (b'"\xff"', "utf-8"),
        ('"é"'.encode("utf-16"), "utf-8"),
        (b"1" * 10_000, "digits"),
        (b"", "Expecting value"),
    ],
)
def test_what_cannot_be_read_safely_is_refused_by_name(content: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_json(content)

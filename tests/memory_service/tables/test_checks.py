from __future__ import annotations

import re

import numpy as np
import pytest

from memory_service import RowFormat
from memory_service.tables.checks import check_fields, check_keys, choice, items, shorten, text, whole, wholes

CHECKS = {
    "batch": whole(0, 9),
    "rows": wholes(1, 9),
    "digest": text(r"[0-9a-f]{4}", "give 4 lower-case hex digits"),
    "row_format": choice(RowFormat),
    "blocks": items,
}
GOOD = {"batch": 3, "rows": [1, 9], "digest": "00ff", "row_format": "bf16", "blocks": [None]}


def test_accepted_values_come_back_in_their_proper_types() -> None:
    given = {**GOOD, "batch": np.int64(3), "rows": np.array([1, 9])}
    checked = check_fields("block 3", given, CHECKS)
    assert checked == {**GOOD, "rows": (1, 9), "row_format": RowFormat.BF16}
    assert {type(checked["batch"]), *map(type, checked["rows"])} == {int}


@pytest.mark.parametrize("value", [-1, 10, 2**70, 0.5, 3.0, True, np.True_, "3", None, [3], float("nan")])
def test_what_is_no_whole_number_within_bounds_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"^block 3: batch=.* is not possible: use a whole number from 0 to 9$"):
        check_fields("block 3", {**GOOD, "batch": value}, CHECKS)


@pytest.mark.parametrize("value", ["12", {"1": 2}, 5, None, [1, 0], [1, "2"], [True], [[1]]])
def test_what_is_no_list_of_whole_numbers_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"^block 3: rows=.*whole numbers? from 1 to 9$"):
        check_fields("block 3", {**GOOD, "rows": value}, CHECKS)


def test_the_item_that_cannot_be_is_named_in_a_long_list() -> None:
    with pytest.raises(ValueError, match=r"item 700 is 0\.5, use a whole number"):
        check_fields("block 3", {**GOOD, "rows": [1] * 700 + [0.5]}, CHECKS)


@pytest.mark.parametrize(
    ("field", "value", "remedy"),
    [
        ("digest", "00FF", "give 4 lower-case hex digits"),
        ("digest", "00ff\n", "give 4 lower-case hex digits"),
        ("digest", b"00ff", "give 4 lower-case hex digits"),
        ("row_format", "fp64", "use one of fp8_e4m3_ue8m0, bf16, fp32"),
        ("row_format", ["bf16"], "use one of fp8_e4m3_ue8m0, bf16, fp32"),
        ("blocks", "[]", "give a list"),
        ("blocks", {}, "give a list"),
    ],
)
def test_a_refusal_names_field_value_and_remedy(field: str, value: object, remedy: str) -> None:
    message = f"block 3: {field}={value!r} is not possible: {remedy}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_fields("block 3", {**GOOD, field: value}, CHECKS)


def test_an_object_has_exactly_the_known_keys() -> None:
    assert check_keys("entry", {"a": 1}, ["a"]) == {"a": 1}
    with pytest.raises(ValueError, match=r"entry is None: give an object with the fields \['a'\]"):
        check_keys("entry", None, ["a"])
    with pytest.raises(ValueError, match=r"unknown entry fields \['b'\]: known are \['a'\]"):
        check_keys("entry", {"a": 1, "b": 2}, ["a"])
    with pytest.raises(ValueError, match=r"entry lacks the fields \['a'\]"):
        check_keys("entry", {}, ["a"])


def test_long_and_deep_values_are_shown_in_a_line() -> None:
    deep: list = []
    for _ in range(900):
        deep = [deep]
    for value in (deep, list(range(10**6)), "x" * 10**6, {"a" * 10**5: deep}):
        assert len(shorten(value)) < 400

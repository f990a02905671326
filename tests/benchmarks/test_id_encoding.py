"""The encodings of row ids that are compared give back what they took."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.id_encoding import ENCODINGS, measure


@pytest.mark.parametrize("name", ENCODINGS)
@pytest.mark.parametrize("ids", [[0], [127, 128, 0, (1 << 32) - 1, 0], [5, 5, 5, 300, 16_384]], ids=str)
def test_an_encoding_gives_back_what_it_took(name: str, ids: list[int]) -> None:
    size, microseconds = measure(ENCODINGS[name], np.array(ids), 3)
    assert size >= len(ids)
    assert microseconds > 0


def test_varints_are_protobufs() -> None:
    encode, _ = ENCODINGS["varint differences"]
    assert encode(np.array([150, 149, 149])) == b"\xac\x02\x01\x00"

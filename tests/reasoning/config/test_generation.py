"""Tokens that end a completion: those of config.json and generation_config.json together."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from reasoning.config.generation import end_token_ids


@pytest.mark.parametrize(
    ("content", "ends"),
    [
        (None, (3,)),
        ({}, (3,)),
        ({"eos_token_id": None}, (3,)),
        ({"eos_token_id": 7}, (3, 7)),
        ({"eos_token_id": [7, 3, 5]}, (3, 7, 5)),
        ({"eos_token_id": [], "temperature": 0.6}, (3,)),
    ],
    ids=str,
)
def test_a_completion_ends_at_the_tokens_of_either_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: object, ends: tuple[int, ...]
) -> None:
    if content is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(content))
    assert end_token_ids(tmp_path, (3,), 8) == ends
    assert not caplog.records


def test_ids_that_the_vocabulary_lacks_are_ignored_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [8, 7, -1]}))
    with caplog.at_level(logging.WARNING):
        assert end_token_ids(tmp_path, (500,), 8) == (7,)
    (record,) = caplog.records
    assert "eos_token_id" in record.message
    assert "the vocabulary ends at 7" in record.message
    assert all(text in record.message for text in ("500", "8", "-1"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"generation_config\.json: .* is not valid JSON .*copy it again"),
        ("[" * 100_000, r"generation_config\.json: .* is not valid JSON"),
        (b"\xff\xfe\x00", r"generation_config\.json: .* is not valid JSON"),
        ("[1]", r"generation_config\.json: .* holds no JSON object but a list"),
        ('{"eos_token_id": "</s>"}', r"generation_config\.json: eos_token_id '</s>' is not a token id"),
        ('{"eos_token_id": [1, true]}', r"eos_token_id True is not a token id"),
        ('{"eos_token_id": [1, [2]]}', r"eos_token_id \[2\] is not a token id"),
        ('{"eos_token_id": 1.5}', r"eos_token_id 1.5 is not a token id"),
    ],
)
def test_a_damaged_file_is_named_with_its_field(tmp_path: Path, content: str | bytes, message: str) -> None:
    (tmp_path / "generation_config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        end_token_ids(tmp_path, (), 8)

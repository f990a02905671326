"""The rule by which files were held out of the shipped model's training is what it was then."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from benchmarks.harness.shipped_held_out import documents_of, held_out_files
from tests.reasoning.corpora.material import small_bpe

HELD_OUT = {"module_36", "module_13", "module_18"}


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A standard library of sixty files."""
    for number in range(60):
        path = tmp_path / f"package_{number % 4}" / f"module_{number}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"x = {number}\n")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    return tmp_path


def test_files_are_held_out_by_their_path_below_the_library_alone(library):
    assert {path.stem for path in held_out_files()} == HELD_OUT
    assert held_out_files() == sorted(held_out_files())
    for path in library.rglob("*.py"):
        path.write_text("other = 1\n")
    (library / "added.py").write_text("more = 1\n")
    assert {path.stem for path in held_out_files()} - {"added"} == HELD_OUT


def test_files_that_took_no_part_are_left_out(library):
    first, second, third = held_out_files()
    first.write_bytes(b"# caf\xe9\n")
    second.write_text(" \n")
    assert held_out_files() == [third]
    for part in ("site-packages", "__pycache__", "encodings", "idlelib"):
        for number in range(60):
            path = library / part / f"module_{number}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text("x = 1\n")
    assert held_out_files() == [third]


def test_a_document_is_an_end_of_text_and_the_file_byte_for_byte(tmp_path):
    (tmp_path / "a.py").write_bytes(b"a\r\nb\rc\n")
    (tmp_path / "b.py").write_text("naïve = 1\n")
    tokenizer = small_bpe()
    found = documents_of(tokenizer, [tmp_path / "a.py", tmp_path / "b.py"])
    assert found.bytes == 7 + 11
    assert [tokens[0] for tokens in found.tokens] == [tokenizer.token_to_id("<|endoftext|>")] * 2
    assert [tokenizer.decode(tokens[1:].tolist()) for tokens in found.tokens] == ["a\r\nb\rc\n", "naïve = 1\n"]

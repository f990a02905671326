from __future__ import annotations

import gzip
import os
import random
import tracemalloc

import pytest
import xxhash

from cluster.batch import reading
from cluster.batch.reading import EMPTY_DIGEST, check_format, read_lines

BIG = 1 << 30


@pytest.fixture
def lines(tmp_path):
    """Write a file, and read its lines."""

    def read(content, limit=BIG):
        (tmp_path / "in.jsonl").write_bytes(content)
        return list(read_lines(tmp_path / "in.jsonl", limit))

    return read


def plainly(content):
    """The same lines with the whole file in memory: number, place, content and digest."""
    digest, found = xxhash.xxh3_128(), []
    for place, line in enumerate(content.split(b"\n"), start=1):
        if stripped := line.strip():
            digest.update(stripped + b"\n")
            found.append((len(found) + 1, place, stripped, digest.hexdigest()))
    return found


def test_blank_lines_are_skipped_but_counted_in_places(lines):
    found = lines(b"one\r\n\n  \ntwo")
    assert [(line.number, line.place, line.content) for line in found] == [(1, 1, b"one"), (2, 4, b"two")]


@pytest.mark.parametrize("piece", [1, 2, 7, 1 << 20])
@pytest.mark.parametrize("limit", [0, 3, 10, BIG])
def test_lines_read_in_pieces_are_those_of_the_whole_file(lines, monkeypatch, piece, limit):
    monkeypatch.setattr(reading, "_PIECE_BYTES", piece)
    chance = random.Random(piece + limit)
    for _ in range(60):
        content = b"".join(chance.choices([b"a", b"bc", b" ", b"\t", b"\r", b"\n", b"\x0b", b"\xc3"], k=40))
        found = lines(content, limit)
        assert [(line.number, line.place, line.digest) for line in found] == [
            (number, place, digest) for number, place, _, digest in plainly(content)
        ]
        for line, (*_, stripped, _digest) in zip(found, plainly(content), strict=True):
            assert line.size == len(stripped)
            assert line.content == (stripped if len(stripped) <= limit else None)


def test_no_line_has_no_digest_but_that_of_nothing(lines):
    assert lines(b"\n \n") == []
    assert xxhash.xxh3_128(b"").hexdigest() == EMPTY_DIGEST


@pytest.mark.parametrize(
    "content",
    [b"x" * 30_000_000, b" " * 30_000_000 + b"x", b"x" + b" " * 30_000_000, b"\n" * 99],
    ids=["text", "blanks before", "blanks behind", "empty lines"],
)
def test_a_huge_line_takes_little_memory(lines, content):
    tracemalloc.start()
    lines(content, limit=1000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (gzip.compress(b"{}", mtime=0), "gzip-compressed"),
        (b"PAR1...", "Parquet"),
        (b"\x28\xb5\x2f\xfd...", "compressed with zstd"),
        ('{"prompt": "x"}'.encode("utf-16"), "UTF-16 text"),
    ],
)
def test_other_formats_are_named_instead_of_read(tmp_path, content, kind):
    path = tmp_path / "in.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"input: .*in.jsonl is {kind}; give a JSONL file"):
        check_format(path)


@pytest.mark.parametrize("content", [b"", b"\n", b'\xef\xbb\xbf{"prompt": "x"}', b"nonsense"])
def test_what_may_be_jsonl_is_let_through(tmp_path, content):
    path = tmp_path / "in.jsonl"
    path.write_bytes(content)
    check_format(path)


def test_an_input_that_cannot_be_read_twice_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, problem in (("pipe", "not a regular file"), (".", "not a regular file"), ("none", "no file")):
        with pytest.raises(ValueError, match=rf"input: .*{problem}"):
            check_format(tmp_path / name)

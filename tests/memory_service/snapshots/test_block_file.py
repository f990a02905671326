"""Block files: reading any content ends in the rows that were written or in a ValueError."""

from __future__ import annotations

import contextlib
import io
import random
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from memory_service.snapshots.block_file import BlockFile, write_batches, written_as

ROW_BYTES, PATH = 128, "engram.1/000000-0a1b2c3d-00000.arrow"
BLOCKS = [np.random.default_rng(i).integers(0, 256, (rows, ROW_BYTES), np.uint8) for i, rows in enumerate((64, 64, 7))]


@pytest.fixture
def content() -> bytes:
    sink = io.BytesIO()
    write_batches(sink, PATH, ROW_BYTES, BLOCKS)
    return sink.getvalue()


def read(content: bytes, batch: int, rows: int) -> np.ndarray:
    out = np.full((rows, ROW_BYTES), 77, np.uint8)
    BlockFile(io.BytesIO(content)).read(batch, out)
    return out


def footer_start(content: bytes) -> int:
    return len(content) - 10 - struct.unpack("<i", content[-10:-6])[0]


def block_start(content: bytes, batch: int) -> int:
    """Where the footer says where a batch lies: offset, bytes of metadata, bytes of the body."""
    rows = content.index(BLOCKS[0].tobytes())
    found = {content.find(struct.pack("<qi", rows - size, size), footer_start(content)) for size in range(8, 800, 8)}
    return max(found) + 24 * batch


def patched(content: bytes, at: int, form: str, value: int) -> bytes:
    return content[:at] + struct.pack(form, value) + content[at + struct.calcsize(form) :]


def test_what_is_written_is_read_in_any_order(content: bytes) -> None:
    for batch in (2, 0, 1, 0):
        np.testing.assert_array_equal(read(content, batch, len(BLOCKS[batch])), BLOCKS[batch])


def test_every_place_agrees_with_what_arrow_reads(tmp_path: Path) -> None:
    for row_bytes, rows in ((1, 1), (3, 5), (264, 100), (4096, 2)):
        blocks = [np.full((rows, row_bytes), 1 + number, np.uint8) for number in range(20)]
        with (tmp_path / "blocks").open("wb") as sink:
            write_batches(sink, PATH, row_bytes, blocks)
        with pa.ipc.open_file(tmp_path / "blocks") as reader, (tmp_path / "blocks").open("rb") as source:
            stored = BlockFile(source)
            for batch, block in enumerate(blocks):
                out = np.zeros_like(block)
                stored.read(batch, out)
                np.testing.assert_array_equal(out, block)
                assert reader.get_batch(batch).column(0).to_pylist() == [row.tobytes() for row in block]


def test_a_batch_that_is_not_there_or_too_small_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="the file has 3 batches, none is number 3"):
        read(content, 3, 1)
    with pytest.raises(ValueError, match=r"batch 2 has \d+ bytes, not 8192"):
        read(content, 2, 64)


@pytest.mark.parametrize("keep", [0, 1, 5, 9, 10, 11, 400, 5000])
def test_a_block_file_truncated_anywhere_is_refused(content: bytes, keep: int) -> None:
    with pytest.raises(ValueError, match=r"too few for an Arrow file|does not end as an Arrow file"):
        BlockFile(io.BytesIO(content[:keep]))


@pytest.mark.parametrize("size", [0, -1, -(2**31), 2**31 - 1, 10**6])
def test_an_impossible_footer_size_is_refused(content: bytes, size: int) -> None:
    with pytest.raises(ValueError, match="does not end as an Arrow file"):
        BlockFile(io.BytesIO(patched(content, len(content) - 10, "<i", size)))


@pytest.mark.parametrize("offset", [-1000, -(2**63), 2**63 - 1, 2**40, 10**9])
def test_a_batch_said_to_lie_outside_the_file_is_refused(content: bytes, offset: int) -> None:
    hostile = patched(content, block_start(content, 1), "<q", offset)
    with pytest.raises(ValueError, match=r"places batch 1 at byte -?\d+ of \d+"):
        read(hostile, 1, 64)
    np.testing.assert_array_equal(read(hostile, 0, 64), BLOCKS[0])


def test_a_batch_said_to_be_huge_takes_no_memory(content: bytes) -> None:
    hostile = patched(content, block_start(content, 1) + 16, "<q", 2**62)
    tracemalloc.start()
    try:
        np.testing.assert_array_equal(read(hostile, 1, 64), BLOCKS[1])
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_file_that_grows_when_decompressed_is_never_decompressed(content: bytes) -> None:
    """64 MiB of zeros in a few kilobytes: it has too few bytes to be the block."""
    rows = np.zeros((64 << 13, ROW_BYTES), np.uint8)
    column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(ROW_BYTES), len(rows), [None, pa.py_buffer(rows)])
    sink = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(sink, pa.schema([("row", pa.binary(ROW_BYTES))]), options=options) as writer:
        writer.write_batch(pa.record_batch([column], names=["row"]))
    with pytest.raises(ValueError, match=r"batch 0 has \d+ bytes, not 67108864"):
        BlockFile(io.BytesIO(sink.getvalue())).read(0, rows)


def test_no_damage_to_the_footer_ends_in_another_error(content: bytes) -> None:
    random_bytes = random.Random(0)
    start = footer_start(content)
    for _ in range(3000):
        damaged = bytearray(content)
        for _ in range(random_bytes.randint(1, 8)):
            damaged[random_bytes.randrange(start, len(content))] = random_bytes.choice((0, 1, 127, 128, 255))
        for batch in range(3):
            with contextlib.suppress(ValueError):
                assert read(bytes(damaged), batch, 7).shape == (7, ROW_BYTES)


def test_a_file_says_as_which_path_it_was_written(content: bytes) -> None:
    assert written_as(io.BytesIO(content)) == PATH
    assert written_as(io.BytesIO(content[: len(content) // 2])) == PATH


def test_a_file_of_an_earlier_release_says_no_path() -> None:
    sink = io.BytesIO()
    schema = pa.schema([pa.field("row", pa.binary(ROW_BYTES), nullable=False)])
    with pa.ipc.new_file(sink, schema):
        pass
    assert written_as(io.BytesIO(sink.getvalue())) == ""


@pytest.mark.parametrize("keep", [0, 3, 8, 20, 100])
def test_a_file_cut_short_in_its_header_could_be_anything(content: bytes, keep: int) -> None:
    assert written_as(io.BytesIO(content[:keep])) is None


def test_other_files_were_not_written_as_blocks() -> None:
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, pa.schema([("price", pa.float64())])):
        pass
    for content in (sink.getvalue(), b"half", b"ARROW1\0\0", b"ARROW1\0\0" + b"\xff" * 500, bytes(5000)):
        assert written_as(io.BytesIO(content)) is None

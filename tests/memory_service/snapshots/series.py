"""A snapshot of several generations whose rows are a function of the generation, and ways to damage it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from memory_service import Snapshot, TableSpec, extend_snapshot
from memory_service.snapshots.names import manifest_name
from memory_service.tables.random_tables import random_block
from memory_service.tables.spec import canonical_json

SPEC = TableSpec(
    name="engram.1",
    layer=1,
    column_rows=(2000, 2001, 2002, 2003),
    max_ngram=3,
    heads=2,
    multipliers=(7, 11, 13),
    pad_id=2,
    token_map_sha256="ab" * 32,
    dim=64,
    row_format="bf16",  # type: ignore[arg-type]
    block_rows=256,
)
CHANGING = range(0, SPEC.blocks, 4)
"""Blocks that every generation has anew."""


def rows_of(generation: int, block: int) -> np.ndarray:
    """What a block holds in a generation."""
    return random_block(SPEC, block, seed=generation if block in CHANGING else 0)


def write_generation(uri: Path | str, generation: int) -> Snapshot:
    """Write a generation, which gets the next number whatever `generation` says."""
    rows = (rows_of(generation, block) for block in range(SPEC.blocks))
    return extend_snapshot(uri, {SPEC: rows}, version=generation)


def check_whole(snapshot: Snapshot) -> None:
    """Every block of a snapshot is what its table's version says."""
    table = snapshot.table(SPEC.name)
    seen = 0
    for block, rows in snapshot.read_blocks(SPEC.name, range(SPEC.blocks)):
        np.testing.assert_array_equal(rows, rows_of(table.version, block), err_msg=f"block {block}")
        seen += 1
    assert seen == SPEC.blocks


def manifest_of(directory: Path, generation: int) -> Path:
    return directory / manifest_name(generation)


def files_of(directory: Path, generation: int) -> list[Path]:
    """Files written for one generation."""
    return sorted(directory.glob(f"{SPEC.name}/{generation:06d}-*"))


def flip_bit(path: Path, offset: int, bit: int = 0) -> None:
    """Flip a bit of a file."""
    content = bytearray(path.read_bytes())
    content[offset] ^= 1 << bit
    path.write_bytes(content)


def flip_bit_of_block(snapshot: Snapshot, directory: Path, block: int) -> Path:
    """Flip a bit in the rows of one block of a local snapshot; the file."""
    entry = snapshot.table(SPEC.name).blocks[block]
    [(_, rows)] = snapshot.read_blocks(SPEC.name, [block])
    content = rows.tobytes()
    path = directory / entry.file
    flip_bit(path, path.read_bytes().index(content) + 100, 5)
    return path


def seal(path: Path, body: bytes) -> None:
    """Write a manifest with this body and its checksum."""
    path.write_bytes(b'{"body":%b,"checksum":"%b"}\n' % (body, xxhash.xxh3_128_hexdigest(body).encode()))


def reseal(path: Path, change: Callable[[Any], object]) -> None:
    """Change the body of a manifest and seal it again."""
    body = json.loads(path.read_bytes())["body"]
    change(body)
    seal(path, canonical_json(body))

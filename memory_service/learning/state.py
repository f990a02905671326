"""Optimizer state at rest: beside each table that learns, a table of its own with the state of the same rows.

So what holds for tables holds for the state: it is placed, loaded, copied and snapshotted block by block, with
checksums, and a snapshot of a memory that learns is a checkpoint of its tables and their optimizer at one step. The
state table of `engram.1` is `engram.1.optimizer`, of fp32 rows: master values, then the slots of the optimizer. A
placement keeps its blocks on the shards of the same blocks of its table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from memory_service.errors import MemoryServiceError
from memory_service.learning.optimizers import OptimizerConfig, row_optimizer
from memory_service.snapshots.snapshot import Snapshot
from memory_service.snapshots.writer import write_snapshot
from memory_service.tables.rows import RowFormat, pack_rows, unpack_rows
from memory_service.tables.spec import OPTIMIZER_SUFFIX, TableSpec

Blocks = Iterable[NDArray[np.float32]]
"""Master values of all blocks of a table in order, [rows of the block, dim] each."""


def state_spec(spec: TableSpec, config: OptimizerConfig) -> TableSpec:
    """Return the spec of the table that holds the optimizer state of a table's rows.

    Raises:
        ValueError: a block of state is too large; the message names `dim` and `block_rows`.
    """
    dim = spec.dim + row_optimizer(config, spec.dim).slots
    return replace(spec, name=spec.name + OPTIMIZER_SUFFIX, dim=dim, row_format=RowFormat.FP32)


def state_bytes(spec: TableSpec, config: OptimizerConfig) -> int:
    """Bytes of RAM that one row of a table takes while it learns: as it is served, and its state."""
    return spec.row_bytes + state_spec(spec, config).row_bytes


def is_state(spec: TableSpec) -> bool:
    """Whether a table holds the optimizer state of another."""
    return spec.name.endswith(OPTIMIZER_SUFFIX)


def learning_specs(specs: Mapping[str, TableSpec]) -> dict[str, TableSpec]:
    """The tables that have optimizer state in the same memory, by name.

    Raises:
        MemoryServiceError: there is none.
    """
    found = {name: spec for name, spec in specs.items() if name + OPTIMIZER_SUFFIX in specs}
    if not found:
        raise MemoryServiceError(
            f"the memory has the tables {sorted(specs)} and no optimizer state: start its shards from a checkpoint of "
            "a training run"
        )
    return found


def write_learning_snapshot(uri: str | Path, tables: Mapping[TableSpec, Blocks], config: OptimizerConfig) -> Snapshot:
    """Write a snapshot from which shards can learn: the rows as they are served, and optimizers that took no step.

    Args:
        uri: directory or URI without a snapshot.
        tables: master values by table; they are gone over twice.
        config: the optimizer.

    Raises:
        SnapshotError: the directory contains a snapshot, or cannot be written to.
        ValueError: values are not finite, do not fit the row format, or do not fit their spec.
    """
    written: dict[TableSpec, Iterable[NDArray[np.uint8]]] = {}
    for spec, blocks in tables.items():
        written[spec] = _packed(blocks, spec)
        written[state_spec(spec, config)] = _initial(blocks, state_spec(spec, config))
    return write_snapshot(uri, written)


def masters_of(snapshot: Snapshot, spec: TableSpec) -> Blocks:
    """Return the values of a served table as master values to start from, read block by block whenever iterated."""
    return _Unpacked(snapshot, spec)


class _Unpacked:
    def __init__(self, snapshot: Snapshot, spec: TableSpec) -> None:
        self._snapshot, self._spec = snapshot, spec

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        for block in range(self._spec.blocks):
            for _, rows in self._snapshot.read_blocks(self._spec.name, [block]):
                yield unpack_rows(rows, self._spec.row_format, self._spec.dim)


def _packed(blocks: Blocks, spec: TableSpec) -> Iterator[NDArray[np.uint8]]:
    return (pack_rows(values, spec.row_format) for values in blocks)


def _initial(blocks: Blocks, spec: TableSpec) -> Iterator[NDArray[np.uint8]]:
    for values in blocks:
        state = np.zeros((len(values), spec.dim), np.float32)
        state[:, : values.shape[1]] = values
        yield state.view(np.uint8).reshape(len(values), spec.row_bytes)

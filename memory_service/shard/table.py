"""The blocks of one table that a shard holds, and the gather. Blocks are added and dropped while rows are read."""

from __future__ import annotations

import ctypes
import logging
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memory_service.errors import RowOutOfRange
from memory_service.protocol.shared_layout import NOT_HELD, Layout
from memory_service.protocol.shared_table import SharedTable, share_table
from memory_service.shard.arena import Arena
from memory_service.shard.gate import ReadGate
from memory_service.tables.distinct import out_of_range
from memory_service.tables.spec import TableSpec

_KEPT: list[Any] = []  # functions that native readers may be about to call, whatever happens to their tables
_FRESHEN = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

_log = logging.getLogger(__name__)


class ShardTable:
    """Blocks of a table in slots of an arena: the arena row of `row` is `row + delta[row >> block_shift]`.

    `add` and `drop` replace `delta` as a whole, so readers take no lock. A reader locates and gathers rows within one
    `reading()` context, during which a dropped block keeps its slot.

    Args:
        spec: the table.
        version: number of committed updates contained in the rows.
        shared: let other processes of this user on this machine map the rows.
        compiled: module of the native implementation that also reads the rows; None without one.

    Raises:
        OutOfMemory: the system has no address space for the table.
    """

    def __init__(self, spec: TableSpec, version: int = 0, shared: bool = False, compiled: Any = None) -> None:
        self.spec = spec
        self._arena = Arena(spec.blocks, spec.block_rows, spec.row_bytes, shared)
        self._layout = Layout.create(spec.blocks, shared)
        self._layout.version = version
        self._delta = self._layout.delta.copy()
        self._changing = threading.Lock()
        self._gate = ReadGate()
        self.reading = self._gate.reading
        self._freshen: Callable[[NDArray[np.int64]], int] | None = None
        self.native = self._open_to_native(compiled)
        """The same rows for native readers; None without the native extension."""

    @property
    def version(self) -> int:
        """Number of committed updates contained in the rows."""
        return self._layout.version

    @version.setter
    def version(self, version: int) -> None:
        with self._changing, self._layout.changing():
            self._set_version(version)

    @property
    def shared(self) -> SharedTable | None:
        """How another process of this machine can map the rows; None if they are not shared."""
        return share_table(self._arena.fd, self._layout.fd)

    @property
    def nbytes(self) -> int:
        """Bytes of memory used by the held blocks."""
        return self._arena.nbytes

    @property
    def blocks(self) -> NDArray[np.int64]:
        """Numbers of the held blocks, in ascending order."""
        return np.flatnonzero(self._delta != NOT_HELD)

    def holds(self, blocks: NDArray[np.integer]) -> bool:
        """Whether all these blocks are held."""
        return bool((self._delta[blocks] != NOT_HELD).all())

    def add(self, blocks: Iterable[tuple[int, NDArray[np.uint8]]]) -> None:
        """Copy blocks into free slots, then make them visible to readers all at once. One caller at a time.

        If the iterable raises an error, the blocks before it are added and the error propagates.

        Args:
            blocks: numbers of blocks that are not held, with packed rows, uint8 [n, row_bytes].

        Raises:
            OutOfMemory: there is no RAM for another block.
        """
        slots: dict[int, int] = {}
        try:
            for block, rows in blocks:
                assert self._delta[block] == NOT_HELD, f"block {block} is held already"
                assert len(rows) == self.spec.block_length(block), f"block {block} cannot have {len(rows)} rows"
                with self._changing:
                    slot = self._arena.take()
                np.copyto(self._arena.slot(slot)[: len(rows)], rows)
                slots[block] = slot
        finally:
            with self._changing:
                self._publish(slots)

    def drop(self, blocks: NDArray[np.integer]) -> None:
        """Drop held blocks and free their memory, once the gathers in progress have ended.

        No new lookup of these blocks may be admitted under any placement; readers that entered before are waited for.
        """
        if not len(blocks):
            return
        self._drain()
        with self._changing:
            delta = self._delta.copy()
            slots = (blocks * self.spec.block_rows + delta[blocks]) // self.spec.block_rows
            delta[blocks] = NOT_HELD
            with self._layout.changing():
                self._set_delta(delta)
                self._drain()  # a lookup of rows outside its placement may still have found the blocks
                self._arena.give_back(slots.tolist())

    def copy_block(self, block: int) -> NDArray[np.uint8]:
        """Copy a held block, uint8 [rows of the block, row_bytes].

        Raises:
            RowOutOfRange: the block is not held.
        """
        first = block * self.spec.block_rows
        self.locate(np.array([first]))  # refuses numbers beyond the table
        rows = np.arange(first, first + self.spec.block_length(block))
        with self.reading_fresh(rows):
            (low,) = self.locate(rows[:1])
            return self._arena.rows[low : low + len(rows)].copy()

    @contextmanager
    def reading_fresh(self, rows: NDArray[np.int64]) -> Iterator[None]:
        """A `reading()` context in which these rows are up to date with the table's version."""
        while True:
            version = self._freshen(rows) if self._freshen else self.version
            with self.reading():
                if version == self.version:
                    yield
                    return

    def freshen_before_reading(self, freshen: Callable[[NDArray[np.int64]], int] | None) -> None:
        """Have a function called with the ids of rows before they are read, to bring them up to date.

        Args:
            freshen: returns the version that the rows have then; None for rows that are always up to date. It is not
                called inside a `reading()` context, and may `update` the table.
        """
        self._freshen = freshen
        if self.native:
            self.native.set_freshen(_c_function(weakref.ref(self)) if freshen else 0)

    def update(self, local: NDArray[np.int64], packed: NDArray[np.uint8], version: int | None = None) -> None:
        """Overwrite located rows; readers see all of it or nothing.

        Args:
            local: arena rows, [n], from `locate`.
            packed: the new rows, [n, row_bytes].
            version: the table's version from then on; None for the same, where rows only catch up with it.
        """
        with self._changing, self._layout.changing(), self._exclusive():
            self._arena.rows[local] = packed
            if version is not None:
                self._set_version(version)

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        with self._gate.exclusive():
            if self.native:
                self.native.pause()
            try:
                yield
            finally:
                if self.native:
                    self.native.resume()

    def locate(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Arena rows of these row ids, int64 [n].

        Raises:
            RowOutOfRange: the table has no such row, or this shard does not hold its block.
        """
        if not rows.size:
            return rows
        if int(rows.view(np.uint64).max()) >= self.spec.rows:  # a negative id reads as a huge one
            raise out_of_range(self.spec, int(rows[(rows < 0) | (rows >= self.spec.rows)][0]))
        local = self._delta.take(rows >> self.spec.block_shift)
        local += rows
        if local.min() < 0:
            raise self._not_held(int(rows[np.argmin(local)]))
        return local

    def gather(self, local: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Copy located rows into `out`, uint8 [n, row_bytes]. Releases the GIL."""
        # "clip" avoids the buffered copy that "raise" makes; locate() has checked the ids.
        np.take(self._arena.rows, local, axis=0, out=out, mode="clip")

    def _publish(self, slots: dict[int, int]) -> None:
        delta = self._delta.copy()
        for block, slot in slots.items():
            delta[block] = (slot - block) * self.spec.block_rows
        with self._layout.changing():
            self._set_delta(delta)

    def _set_version(self, version: int) -> None:
        self._layout.version = version
        if self.native:
            self.native.set_version(version)

    def _set_delta(self, delta: NDArray[np.int64]) -> None:
        self._delta = self._layout.delta[:] = delta
        if self.native:
            self.native.publish(delta)

    def _drain(self) -> None:
        """Wait until every reader that is inside now has left."""
        self._gate.drain()
        if self.native:
            self.native.drain()

    def _open_to_native(self, compiled: Any) -> Any:
        if compiled is None:
            return None
        table = compiled.Table(
            name=self.spec.name,
            fingerprint=bytes.fromhex(self.spec.fingerprint),
            rows=self.spec.rows,
            block_shift=self.spec.block_shift,
            row_bytes=self.spec.row_bytes,
            arena=self._arena.rows.ctypes.data,
            delta=self._delta,
            version=self.version,
        )
        weakref.finalize(self, table.close)  # before the arena goes
        return table

    def _not_held(self, row: int) -> RowOutOfRange:
        block = row // self.spec.block_rows
        return RowOutOfRange(
            f"table {self.spec.name!r} row {row} lies in block {block}, which this shard does not hold: "
            "ask the shard that the placement names"
        )


def _c_function(reference: weakref.ref[ShardTable]) -> int:
    """Address of the function `Freshen` of memory_service/native/server_table.h, for one table."""

    def call(address: int | None, count: int, wide: int) -> int:
        table = reference()
        if table is None:
            return -1
        try:
            content = ctypes.string_at(address, count * (8 if wide else 4)) if address and count else b""
            ids = np.frombuffer(content, "<u8" if wide else "<u4").astype(np.int64)
            return table._freshen(ids) if table._freshen else table.version
        except Exception:
            _log.exception("table %s: rows cannot be brought up to date", table.spec.name)
            return -1

    _KEPT.append(_FRESHEN(call))
    return ctypes.cast(_KEPT[-1], ctypes.c_void_p).value or 0

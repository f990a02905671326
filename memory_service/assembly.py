"""One lookup on its way: which rows come from which shard, where they land, and how it ends."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from memory_service.errors import DeadlineExceeded, MemoryServiceError
from memory_service.memory import Rows
from memory_service.placement import ShardAddress
from memory_service.spec import TableSpec
from memory_service.stream import RowStream


@dataclass(eq=False)
class Lookup:
    """The distinct ids of one lookup, its future and its deadline; an attempt to answer it is an `Assembly`."""

    spec: TableSpec
    ids: NDArray[np.int64]
    """Distinct row ids [U], ascending."""
    inverse: NDArray[np.int64]
    """Index into `ids`, in the shape asked for."""
    started: float
    """Moment of the monotonic clock at which it was asked."""
    timeout_s: float
    future: Future[Rows] = field(default_factory=Future)
    attempts: int = 0
    assembly: "Assembly | None" = None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _claimed: bool = False

    @property
    def deadline(self) -> float:
        """Moment of the monotonic clock at which the lookup fails."""
        return self.started + self.timeout_s

    def claim(self) -> bool:
        """Whether the caller is the one to end this lookup; call before `resolve` or `reject`."""
        with self._lock:
            claimed, self._claimed = self._claimed, True
            self.assembly = None  # the two point at each other, and the buffer is too large to wait for the collector
        return not claimed

    def resolve(self, rows: Rows) -> None:
        """End in rows."""
        with suppress(InvalidStateError):  # the caller cancelled the future
            self.future.set_result(rows)

    def reject(self, error: MemoryServiceError) -> None:
        """End in an error."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)

    def owed(self) -> "list[ShardPart]":
        """Parts that have not landed."""
        assembly = self.assembly
        return assembly.owed() if assembly else []

    def overdue(self, owed: "list[ShardPart]") -> DeadlineExceeded:
        """The error for a deadline that passed while these parts were owed."""
        shards = list(dict.fromkeys(part.shard for part in owed))
        names = ", ".join(f"{shard.shard} at {shard.address}" for shard in shards) or "the shards"
        epoch = owed[0].epoch if owed else None
        return DeadlineExceeded(
            f"table {self.spec.name!r}: no answer within {self.timeout_s:g} s from {names}, epoch {epoch}",
            self.spec.name,
            shards[0].shard if shards else None,
            epoch,
        )


class Assembly:
    """One attempt at a lookup under one placement.

    The rows land grouped by shard, so that each reply is one contiguous copy into the buffer; the inverse is
    rearranged to match while the requests travel.
    """

    def __init__(
        self,
        lookup: Lookup,
        epoch: int,
        shards: NDArray[np.integer],
        done: Callable[[Lookup, "Assembly", Rows], None],
        failed: Callable[[Lookup, "Assembly", MemoryServiceError], None],
    ) -> None:
        self.lookup = lookup
        self.epoch = epoch
        self._order = np.argsort(shards, kind="stable")
        self._shards = shards[self._order]
        self._ids = lookup.ids[self._order]
        self._buffer = np.empty((len(self._ids), lookup.spec.row_bytes), np.uint8)
        self._done = done
        self._failed = failed
        self._lock = threading.Lock()
        self._inverse: NDArray[np.int64] | None = None
        self._owed: list[ShardPart] = []
        self.shard_rows: dict[str, int] = {}
        self._over = False

    def split(self, addresses: Sequence[ShardAddress], max_rows: int) -> "list[ShardPart]":
        """The parts to ask for, of at most `max_rows` each; call once."""
        shards, starts = np.unique(self._shards, return_index=True)
        bounds = pairwise([*starts.tolist(), len(self._shards)])
        for shard, (start, end) in zip(shards.tolist(), bounds, strict=True):
            self.shard_rows[addresses[shard].shard] = end - start
            for low in range(start, end, max_rows):
                self._owed.append(ShardPart(self, addresses[shard], low, min(low + max_rows, end)))
        return list(self._owed)

    def rearrange(self) -> None:
        """Compute the inverse; call once, after the parts were sent."""
        rank = np.empty(len(self._order), np.int64)
        rank[self._order] = np.arange(len(self._order))
        self._inverse = rank[self.lookup.inverse]
        self._finish_if_complete()

    def owed(self) -> "list[ShardPart]":
        """Parts that have not landed."""
        with self._lock:
            return list(self._owed)

    def ids(self, low: int, high: int) -> NDArray[np.int64]:
        """The ids of one part."""
        return self._ids[low:high]

    def land(self, part: "ShardPart", rows: NDArray[np.uint8]) -> None:
        """Copy a part's rows into place."""
        if len(rows) != part.high - part.low:
            return self.fail(MemoryServiceError(f"{part.shard.shard} sent {len(rows)} rows for {len(part.ids)} ids"))
        np.copyto(self._buffer[part.low : part.high], rows)
        with self._lock:
            self._owed.remove(part)
        return self._finish_if_complete()

    def fail(self, error: MemoryServiceError) -> None:
        """End this attempt, unless it has ended."""
        if self._end():
            self._failed(self.lookup, self, error)

    def _finish_if_complete(self) -> None:
        with self._lock:
            complete = self._inverse is not None and not self._owed
        if complete and self._end():
            assert self._inverse is not None
            self._done(self.lookup, self, Rows(self._buffer, self._inverse))

    def _end(self) -> bool:
        with self._lock:
            over, self._over = self._over, True
        return not over


class ShardPart:
    """A contiguous run of an assembly's rows, asked of one shard in one request."""

    def __init__(self, assembly: Assembly, shard: ShardAddress, low: int, high: int) -> None:
        self._assembly = assembly
        self.shard = shard
        self.low = low
        self.high = high
        self.ids = assembly.ids(low, high)
        self.epoch = assembly.epoch
        self.deadline = assembly.lookup.deadline
        self.stream: RowStream | None = None
        """The stream that the part was sent on."""

    def land(self, rows: NDArray[np.uint8]) -> None:
        """Take the rows."""
        self._assembly.land(self, rows)

    def fail(self, error: MemoryServiceError) -> None:
        """The rows will not come."""
        self._assembly.fail(error)

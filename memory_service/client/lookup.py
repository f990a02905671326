"""One lookup on its way: the parts that shards were asked for, where their rows land, and how it ends."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from memory_service.client.stream import RowStream
from memory_service.errors import DeadlineExceeded, MemoryServiceError
from memory_service.memory import Rows
from memory_service.placement.placement import ShardAddress
from memory_service.tables.distinct import DistinctRows
from memory_service.tables.spec import TableSpec

Places = slice | NDArray[np.int64]
"""Rows of a lookup's buffer."""


class Asker(Protocol):
    """Who asked, and decides what happens next."""

    def check(self, lookup: Lookup, now: float) -> None:
        """Look after a lookup under way, every few milliseconds."""

    def landed(self, part: Part, rows: NDArray[np.uint8], version: int) -> None:
        """A part's rows have come, of use or not."""

    def failed(self, part: Part, error: MemoryServiceError) -> None:
        """A part will not come, and nothing else that is under way makes up for it."""

    def torn(self, lookup: Lookup) -> None:
        """Parts of one lookup were read at different versions of the table."""

    def ended(self, lookup: Lookup, error: MemoryServiceError | None) -> None:
        """The lookup is about to end in its rows, or in an error."""


class Part:
    """Some rows of a lookup, asked of one shard in one request.

    A part that fails or is late gets stand-ins: parts that ask other shards for the same rows. It is done when its own
    rows have landed or those of all its stand-ins.
    """

    def __init__(
        self,
        lookup: Lookup,
        shard: ShardAddress,
        places: Places,
        ids: NDArray[np.int64],
        epoch: int,
        stands_for: Part | None = None,
    ) -> None:
        self.lookup = lookup
        self.shard = shard
        self.places = places
        self.ids = ids
        self.epoch = epoch
        self.stands_for = stands_for
        self.tried: frozenset[str] = frozenset((shard.shard,))
        """Shards asked for these rows under this epoch."""
        if stands_for is not None and stands_for.epoch == epoch:
            self.tried |= stands_for.tried
        self.rounds: int = stands_for.rounds if stands_for else 0
        """Times that the placement was read anew for the sake of these rows."""
        self.attempt = lookup.attempt
        self.stream: RowStream | None = None
        self.request_id = 0
        self.sent = 0.0
        self.late = False
        """Whether stand-ins were asked while this part was under way."""
        self.done = False
        self.dead = False
        self.stand_ins: list[Part] = []

    @property
    def deadline(self) -> float:
        """Moment of the monotonic clock after which nobody waits for the rows."""
        return self.lookup.deadline

    def land(self, rows: NDArray[np.uint8], version: int) -> None:
        """Take the rows, an array that nobody else will change."""
        if len(rows) != len(self.ids):
            self.fail(MemoryServiceError(f"{self.shard.shard} sent {len(rows)} rows for {len(self.ids)} ids"))
        else:
            self.lookup.land(self, rows, version)

    def fail(self, error: MemoryServiceError) -> None:
        """The rows will not come."""
        self.lookup.fail(self, error)

    def superseded(self) -> bool:
        """Whether these rows are here already, or belong to an attempt that was given up."""
        part: Part | None = self
        while part is not None:
            if part.done:
                return True
            part = part.stands_for
        return self.attempt != self.lookup.attempt

    def covered(self) -> bool:
        """Whether something else that is under way will bring the rows of this part, which is dead."""
        waiting = self.stands_for is not None and not self.stands_for.dead
        return waiting or (bool(self.stand_ins) and not any(part.dead for part in self.stand_ins))


class Lookup:
    """Rows asked for at once; ends once, in rows or in an error. All parts land in one buffer."""

    def __init__(
        self,
        asker: Asker,
        spec: TableSpec,
        asked: DistinctRows,
        started: float,
        timeout_s: float,
    ) -> None:
        self.spec = spec
        self.asked = asked
        self.ids = asked.ids
        """Distinct row ids, [U]."""
        self.started = started
        """Moment of the monotonic clock at which it was asked."""
        self.timeout_s = timeout_s
        self.deadline = started + timeout_s
        self.future: Future[Rows] = Future()
        self.attempt = 0
        self.version: int | None = None
        """The table's version that the rows so far are of."""
        self._asker = asker
        self._lock = threading.Lock()
        self._roots: list[Part] = []
        self._buffer: NDArray[np.uint8] | None = None
        self._order: NDArray[np.int64] | None = None
        self._ready = False
        self._over = False

    def check(self, now: float) -> None:
        """Let the asker look after this lookup."""
        self._asker.check(self, now)

    def begin(self, hits: NDArray[np.uint8] | None = None, version: int | None = None) -> int:
        """Start an attempt and return its number; `hits` [U, row_bytes] has some rows of a version in place already."""
        with self._lock:
            self.attempt += 1
            self._roots, self._ready = [], False
            self._buffer, self._order, self.version = hits, None, version
            return self.attempt

    def split(
        self,
        shards: NDArray[np.uint16],
        addresses: Sequence[ShardAddress],
        epoch: int,
        max_rows: int,
        wanted: NDArray[np.int64] | None,
    ) -> list[Part]:
        """The parts to ask for: the `wanted` places, or all; `shards` names one for each.

        Where all are wanted, the rows land grouped by shard, so that each reply is one contiguous copy; `arrange`
        computes the inverse to match while the requests travel.
        """
        order = _grouping(shards)
        if order is not None:
            shards = shards[order]
        if wanted is not None:
            places = wanted if order is None else wanted[order]
            ids = self.ids[places]
        else:
            self._order = order
            ids = self.ids if order is None else self.ids[order]
        for shard, low, high in _runs(shards, max_rows):
            where = slice(low, high) if wanted is None else places[low:high]
            self._roots.append(Part(self, addresses[shard], where, ids[low:high], epoch))
        return list(self._roots)

    def stand_in(
        self, part: Part, shards: NDArray[np.uint16], addresses: Sequence[ShardAddress], epoch: int, max_rows: int
    ) -> list[Part]:
        """Parts of other shards for the rows of a part that is late or dead."""
        order = np.argsort(shards, kind="stable")
        places = np.arange(part.places.start, part.places.stop) if isinstance(part.places, slice) else part.places
        places, ids = places[order], part.ids[order]
        parts = [
            Part(self, addresses[shard], places[low:high], ids[low:high], epoch, part)
            for shard, low, high in _runs(shards[order], max_rows)
        ]
        with self._lock:
            part.stand_ins = parts
        return parts

    def arrange(self, attempt: int) -> None:
        """Compute the inverse, in line with the buffer; call once an attempt, after the parts were sent."""
        inverse, order = self.asked.inverse(), self._order
        if order is not None:
            rank = np.empty(len(order), np.int64)
            rank[order] = np.arange(len(order))
            inverse = rank[inverse]
        with self._lock:
            if self.attempt != attempt:
                return  # given up meanwhile
            self._arranged, self._ready = inverse, True
            complete = self._claim_if_complete()
        if complete:
            self._resolve()

    def land(self, part: Part, rows: NDArray[np.uint8], version: int) -> None:
        """Copy a part's rows into place, unless they are there."""
        torn = complete = False
        with self._lock:
            if not (self._over or part.superseded()):
                torn = self.version not in (None, version)
                if torn:
                    self.attempt += 1  # the other parts of this one are of no use any more
                else:
                    self.version = version
                    self._take(part.places, rows)
                    _settle(part)
                    complete = self._claim_if_complete()
        if complete:
            self._resolve()
        self._asker.landed(part, rows, version)
        if torn:
            self._asker.torn(self)

    def fail(self, part: Part, error: MemoryServiceError) -> None:
        """Note that a part will not come; the asker hears of it if nothing else makes up for it."""
        with self._lock:
            of_no_matter = self._over or part.dead or part.superseded()
            part.dead = True
            covered = of_no_matter or part.covered()
        if not covered:
            self._asker.failed(part, error)

    def reject(self, error: MemoryServiceError) -> None:
        """End in an error, unless it has ended."""
        with self._lock:
            over, self._over = self._over, True
        if not over:
            self._asker.ended(self, error)
            self._forget()
            with suppress(InvalidStateError):  # the caller cancelled the future
                self.future.set_exception(error)

    def owed(self) -> list[Part]:
        """Parts under way whose rows are still missing."""
        with self._lock:
            return [part for part in _leaves(self._roots) if not part.done]

    def overdue(self) -> DeadlineExceeded:
        """The error for a deadline that has passed."""
        owed = self.owed() or [part for part in self._roots if not part.done]
        shards = list(dict.fromkeys(part.shard for part in owed))
        names = ", ".join(f"{shard.shard} at {shard.address}" for shard in shards) or "the shards"
        epoch = owed[0].epoch if owed else None
        return DeadlineExceeded(
            f"table {self.spec.name!r}: no answer within {self.timeout_s:g} s from {names}, epoch {epoch}",
            self.spec.name,
            shards[0].shard if shards else None,
            epoch,
        )

    def _take(self, places: Places, rows: NDArray[np.uint8]) -> None:
        if self._buffer is None:
            if isinstance(places, slice) and len(rows) == len(self.ids):
                self._buffer = owned(rows)
                return
            self._buffer = np.empty((len(self.ids), self.spec.row_bytes), np.uint8)
        self._buffer[places] = rows

    def _claim_if_complete(self) -> bool:
        if self._over or not self._ready or not all(part.done for part in self._roots):
            return False
        self._over = True
        return True

    def _resolve(self) -> None:
        self._asker.ended(self, None)
        buffer = self._buffer
        if buffer is None:
            buffer = np.empty((0, self.spec.row_bytes), np.uint8)
        self._forget()
        with suppress(InvalidStateError):  # the caller cancelled the future
            self.future.set_result(Rows(buffer, self._arranged))

    def _forget(self) -> None:
        """Let go of the parts: they point here, and the buffer is too large to wait for the collector."""
        for part in _leaves(self._roots):
            if part.stream is not None and not part.done:
                part.stream.forget(part)
        self._roots, self._buffer = [], None


def owned(rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Received rows as an array that their only holder may write to, without a copy.

    Arrow hands out what it received as read-only, although nobody else has it.
    """
    if rows.flags.writeable:
        return rows
    memory = (ctypes.c_uint8 * rows.nbytes).from_address(rows.ctypes.data)
    memory.rows = rows  # type: ignore[attr-defined]  # keeps it alive
    return np.frombuffer(memoryview(memory), np.uint8).reshape(rows.shape)


def _settle(part: Part) -> None:
    """Mark a part as done, and whoever it completes by that."""
    part.done = True
    whom = part.stands_for
    while whom is not None and not whom.done and all(other.done for other in whom.stand_ins):
        whom.done = True
        whom = whom.stands_for


def _leaves(parts: Sequence[Part]) -> Iterator[Part]:
    """The parts that were asked for and not found dead."""
    for part in parts:
        if not part.dead:
            yield part
        yield from _leaves(part.stand_ins)


def _grouping(shards: NDArray[np.uint16]) -> NDArray[np.int64] | None:
    """The order that brings equal shards together; None if they are all equal."""
    if len(shards) and (shards == shards[0]).all():
        return None
    return np.argsort(shards, kind="stable")


def _runs(shards: NDArray[np.uint16], max_rows: int) -> Iterator[tuple[int, int, int]]:
    """(shard, low, high) for each run of a shard in `shards`, which are grouped, cut at `max_rows`."""
    alike = not len(shards) or shards[0] == shards[-1]  # they are grouped
    starts = [] if alike else (np.flatnonzero(shards[1:] != shards[:-1]) + 1).tolist()
    starts = [0, *starts, len(shards)]
    for start, end in pairwise(starts):
        for low in range(start, end, max_rows):
            yield int(shards[low]), low, min(low + max_rows, end)

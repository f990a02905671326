"""Gradients on their way to shards: split by shard, cut into parts, and sent again until they are acknowledged."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from memory_service.control.shard_directory import ShardDirectory
from memory_service.errors import DeadlineExceeded, ResourceExhausted, ShardUnavailable
from memory_service.learning.state import learning_specs
from memory_service.memory import require_table
from memory_service.protocol.row_messages import ids_to_bytes
from memory_service.tables.spec import TableSpec
from memory_service.training.control import Attempt, LearningControl
from protos import memory_pb2 as pb

PART_BYTES = 1 << 20
"""Bytes of gradients in one push, about: the next part is on its way while a shard reads one."""
_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0

_Result = TypeVar("_Result")


class GradientPusher:
    """Sends the gradients of one rank to the shards that hold the rows. Safe to use from several threads."""

    def __init__(
        self,
        directory: ShardDirectory,
        attempt: Attempt,
        rank: int,
        unreachable_s: float = 30.0,
        ranks_s: float = 3600.0,
    ) -> None:
        """Make a pusher.

        Args:
            directory: the shards and their placement.
            attempt: the attempt that has begun on them.
            rank: rank of this worker.
            unreachable_s: how long a shard may be out of reach.
            ranks_s: how long other ranks may keep a step waiting, for example while one writes a checkpoint.
        """
        self._attempt, self._rank = attempt, rank
        self._unreachable_s, self._ranks_s = unreachable_s, ranks_s
        self._placement = directory.placement
        self._specs = learning_specs(directory.specs)
        self._shards = [
            LearningControl(each.address, each.shard, directory.security) for each in self._placement.shards
        ]
        # A thread for each call that may wait: a push of each table and the norm, to each shard.
        self._threads = ThreadPoolExecutor(len(self._shards) * (len(self._specs) + 2), thread_name_prefix="push")
        self._closed = threading.Event()
        self.pushed_bytes = 0
        """Bytes of row ids and gradients pushed so far, without those sent again."""

    @property
    def specs(self) -> Mapping[str, TableSpec]:
        """The tables that learn, by name."""
        return self._specs

    def push(
        self, step: int, table: str, rows: NDArray[np.int64], gradients: NDArray[np.float32], rate: float
    ) -> Future[None]:
        """See LearningMemory.push."""
        spec = require_table(self._specs, table)
        shares = [list(self._parts(spec, step, rate, rows[mine], gradients[mine])) for mine in self._split(spec, rows)]
        self.pushed_bytes += sum(len(part.row_ids) + len(part.gradients) for parts in shares for part in parts)
        sent = [
            self._threads.submit(self._send, control, parts)
            for control, parts in zip(self._shards, shares, strict=True)
        ]
        return _gathered(sent, lambda _: None)

    def squared_norm(self, step: int) -> Future[float]:
        """See LearningMemory.squared_norm."""
        incarnation = self._attempt.incarnation
        norms = [
            self._submit(lambda control: control.squared_norm(incarnation, step), control) for control in self._shards
        ]
        return _gathered(norms, lambda values: float(sum(values)))

    def commit(self, step: int, scale: float) -> Future[None]:
        """See LearningMemory.commit."""
        incarnation = self._attempt.incarnation
        commits = [
            self._submit(lambda control: control.commit(incarnation, step, scale), control) for control in self._shards
        ]
        return _gathered(commits, lambda _: None)

    def close(self) -> None:
        """End threads and connections."""
        self._closed.set()
        self._threads.shutdown(wait=False, cancel_futures=True)
        for control in self._shards:
            control.close()

    def _split(self, spec: TableSpec, rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Positions in `rows` of those that each shard holds."""
        holder = self._placement.assigned(spec.name)[0][rows >> spec.block_shift]
        return [np.flatnonzero(holder == shard) for shard in range(len(self._shards))]

    def _parts(
        self, spec: TableSpec, step: int, rate: float, rows: NDArray[np.int64], gradients: NDArray[np.float32]
    ) -> Iterator[pb.PushRequest]:
        size = max(1, PART_BYTES // (4 * spec.dim))
        parts = max(1, -(-len(rows) // size))
        for part in range(parts):
            chosen = slice(part * size, (part + 1) * size)
            yield pb.PushRequest(
                incarnation=self._attempt.incarnation,
                rank=self._rank,
                step=step,
                table=spec.name,
                part=part,
                parts=parts,
                learning_rate=rate,
                row_ids=ids_to_bytes(rows[chosen], spec.rows),
                gradients=np.ascontiguousarray(gradients[chosen], "<f4").tobytes(),
            )

    def _send(self, control: LearningControl, parts: Sequence[pb.PushRequest]) -> None:
        for part in parts:
            self._patiently(LearningControl.push, control, part)

    def _submit(self, call: Callable[[LearningControl], _Result], control: LearningControl) -> Future[_Result]:
        return self._threads.submit(self._patiently, call, control)

    def _patiently(self, call: Callable[..., _Result], *arguments: Any) -> _Result:
        """Call a shard again while it is out of reach or waits for other ranks; every call may be repeated."""
        began, pause = time.monotonic(), _PAUSE_S
        while True:
            try:
                return call(*arguments)
            except (ShardUnavailable, DeadlineExceeded, ResourceExhausted) as error:
                patience_s = self._ranks_s if isinstance(error, DeadlineExceeded) else self._unreachable_s
                if time.monotonic() + pause > began + patience_s or self._closed.wait(pause):
                    raise
                pause = min(2 * pause, _LONGEST_PAUSE_S)


def _gathered(parts: Sequence[Future[_Result]], combine: Callable[[list[_Result]], _Result]) -> Future[_Result]:
    """A future of all results together, or of the first error."""
    whole: Future[_Result] = Future()
    lock, left = threading.Lock(), set(range(len(parts)))

    def done(number: int) -> None:
        with lock:
            left.discard(number)
            last = not left
        if last:
            try:
                whole.set_result(combine([part.result() for part in parts]))
            except BaseException as error:
                whole.set_exception(error)

    for number, part in enumerate(parts):
        part.add_done_callback(lambda _, number=number: done(number))  # type: ignore[misc]
    return whole

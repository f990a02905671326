"""What a client knows of the shards: their tables, the newest placement, and how to refresh it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace

import numpy as np

from memory_service.control.client import ControlClient
from memory_service.control.each_shard import ask, describing, each_shard
from memory_service.errors import FingerprintMismatch, MemoryServiceError, ShardUnavailable
from memory_service.placement.placement import UNASSIGNED, Placement, ShardAddress
from memory_service.protocol.messages import ShardInfo
from memory_service.protocol.security import ClientSecurity
from memory_service.protocol.shared_table import SharedTable
from memory_service.tables.spec import TableSpec

_REFRESH_S = 1.0  # for one shard to answer a refresh; the answers of the others suffice
_THREADS = 16


class ShardDirectory:
    """The table specs of a memory, and a placement that `refresh` may replace."""

    def __init__(
        self, entry: ShardAddress, placement: Placement, specs: dict[str, TableSpec], security: ClientSecurity
    ) -> None:
        self.security = security
        self._entry = entry
        self._advertised = next((shard for shard in placement.shards if shard.shard == entry.shard), None)
        self._lock = threading.Lock()
        self.specs = specs
        self.placement = self._reachable(placement)
        self.shared: dict[tuple[str, str], SharedTable] = {}
        """Shared memory of tables on this machine, by shard and table name."""

    @classmethod
    def read(cls, address: str, timeout_s: float, security: ClientSecurity) -> ShardDirectory:
        """Ask one shard for the placement, then every shard of it what it holds.

        Raises:
            ShardUnavailable: the shard at `address`, or one that holds blocks which no other holds, does not answer.
            FingerprintMismatch: two shards hold different tables of one name.
        """
        deadline = time.monotonic() + timeout_s
        with ControlClient(address, security=security) as control:
            info = control.describe(timeout_s)
        entry = ShardAddress(info.shard, address)
        specs = {name: table.spec for name, table in info.tables.items()}
        directory = cls(entry, _placement_of(info, address), specs, security)
        directory._describe_all(max(0.1, deadline - time.monotonic()))
        return directory

    def refresh(self, epoch: int, timeout_s: float) -> None:
        """Ask the shards for a placement newer than `epoch`, unless another thread has found one already."""
        with self._lock:
            if self.placement.epoch != epoch:
                return
            for info in _descriptions(self.placement.shards, min(timeout_s, _REFRESH_S), self.security):
                self._adopt(info)
                if self.placement.epoch != epoch:
                    return  # without waiting for shards that may be down

    def _describe_all(self, timeout_s: float) -> None:
        """Ask every shard what it holds, and compare it with the specs."""
        placement = self.placement
        answers = each_shard(placement.shards, describing(timeout_s), self.security)
        for answer in answers:
            if isinstance(answer, ShardInfo):
                self._adopt(answer)
        unreachable = [number for number, answer in enumerate(answers) if isinstance(answer, MemoryServiceError)]
        for assigned in placement.tables.values():
            alone = np.isin(assigned, [*unreachable, UNASSIGNED]).all(axis=0)
            if alone.any():
                error = answers[assigned[0, np.argmax(alone)]]
                assert isinstance(error, MemoryServiceError), "its shards are unreachable"
                raise error

    def _adopt(self, info: ShardInfo) -> None:
        for name, held in info.tables.items():
            if name in self.specs and held.spec.fingerprint != self.specs[name].fingerprint:
                raise FingerprintMismatch(
                    f"table {name!r} on {info.shard} differs from {self._entry.shard}'s in "
                    f"{', '.join(self.specs[name].differing_fields(held.spec))}: load both from the same snapshot"
                )
            if held.shared is not None:
                self.shared[info.shard, name] = held.shared
        if info.placement is not None and info.placement.epoch > self.placement.epoch:
            self.placement = self._reachable(info.placement)

    def _reachable(self, placement: Placement) -> Placement:
        """The placement, with the shard that was connected to at the address that was used for it."""
        shards = tuple(self._entry if shard == self._advertised else shard for shard in placement.shards)
        return replace(placement, shards=shards)


def _descriptions(shards: Sequence[ShardAddress], timeout_s: float, security: ClientSecurity) -> Iterator[ShardInfo]:
    """Descriptions of the shards that answer, in the order in which they do."""
    pool = ThreadPoolExecutor(min(_THREADS, len(shards)))
    try:
        for done in as_completed([pool.submit(ask, shard, describing(timeout_s), security) for shard in shards]):
            if isinstance(info := done.result(), ShardInfo):
                yield info
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _placement_of(info: ShardInfo, address: str) -> Placement:
    if info.placement is None:
        raise ShardUnavailable(
            f"{info.shard} at {address} has no active placement yet: load it first", None, info.shard
        )
    return info.placement

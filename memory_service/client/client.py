"""A memory whose tables lie in shards on the network."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from memory_service.client.config import ClientConfig
from memory_service.client.counters import LookupCounters
from memory_service.client.dispatch import Dispatcher
from memory_service.client.native_dispatch import Allocate, NativeDispatcher
from memory_service.client.pending import RowsFuture, forked
from memory_service.control.shard_directory import ShardDirectory
from memory_service.control.snapshot import snapshot_shards
from memory_service.errors import InvalidRequest, MemoryServiceError
from memory_service.memory import MemoryStats, require_table
from memory_service.metrics.catalogue import CLIENT_EPOCH
from memory_service.metrics.metrics import Sample
from memory_service.native import extension
from memory_service.protocol.security import ClientSecurity
from memory_service.snapshots.snapshot import Snapshot
from memory_service.tables.spec import TableSpec


class MemoryClient:
    """Looks rows up in the shards of a memory. Safe to use from several threads; connections open as needed."""

    def __init__(self, directory: ShardDirectory, config: ClientConfig, allocate: Allocate | None = None) -> None:
        self.specs: Mapping[str, TableSpec] = directory.specs
        self._directory = directory
        self._config = config
        self._counters = LookupCounters()
        native = extension()
        if native is None:
            self._dispatcher = Dispatcher(directory, config, self._counters)
        else:
            self._dispatcher = NativeDispatcher(directory, config, self._counters, native.client, allocate)
        self._process = os.getpid()
        self._closed = False

    @classmethod
    def connect(
        cls,
        address: str,
        timeout_s: float = 5.0,
        config: ClientConfig | None = None,
        security: ClientSecurity | None = None,
        allocate: Allocate | None = None,
    ) -> MemoryClient:
        """Connect to a memory by the address of any of its shards, and learn the others from it.

        Args:
            address: host:port of a shard's control port.
            timeout_s: seconds for all shards to describe themselves.
            config: timeouts, hedging and caching.
            security: certificates and token; None takes them from the environment, see
                ClientSecurity.from_environment.
            allocate: returns an array of so many bytes, such as pinned ones. A native client lets rows land in them
                and uses them again and again, except for lookups that were late or failed over; None for the heap.

        Raises:
            ShardUnavailable: a shard that holds blocks which no other holds does not answer; names shard and address.
            FingerprintMismatch: two shards hold different tables of one name.
        """
        security = security or ClientSecurity.from_environment()
        return cls(ShardDirectory.read(address, timeout_s, security), config or ClientConfig(), allocate)

    def lookup(self, table: str, rows: np.ndarray, timeout_s: float | None = None, min_version: int = 0) -> RowsFuture:
        """Request rows by id and return at once, whatever the shards do; see Memory.lookup.

        Args:
            table: name of a table.
            rows: row ids, an integer array of any shape.
            timeout_s: seconds until the lookup fails; None takes `lookup_timeout_s` of the client's configuration.
            min_version: oldest version of the table whose rows are wanted; the lookup ends in OldVersion where shards
                have only older ones. 0 for any.

        Raises:
            UnknownTable, InvalidRequest, RowOutOfRange: the request cannot be right.
            MemoryServiceError: this client was closed, or belongs to the process that this one was forked from.
        """
        self._require_usable()
        spec = require_table(self.specs, table)
        if not 0 <= min_version < 1 << 63:
            raise InvalidRequest(f"min_version: {min_version} is no version; give a number from 0 on")
        timeout_s = self._config.lookup_timeout_s if timeout_s is None else timeout_s
        return self._dispatcher.lookup(spec, rows, timeout_s, min_version)

    def stats(self) -> MemoryStats:
        """Counters since the client connected."""
        return self._counters.snapshot()

    def collect(self) -> Iterator[Sample]:
        """The counters and more as samples of metrics, for an exporter."""
        yield Sample(CLIENT_EPOCH, (), self._directory.placement.epoch)
        yield from self._counters.collect()

    def snapshot(self, uri: str | Path, full: bool = False) -> Snapshot:
        """Have the shards write their blocks to a snapshot directory, then seal it as a new generation.

        Args:
            uri: a directory that all shards and this process can reach. If it holds a snapshot of this memory already,
                only blocks that changed are written.
            full: write unchanged blocks as well.

        Raises:
            SnapshotError: the directory holds the snapshot of another memory, or cannot be written; the generations
                that it holds are as before.
            ShardUnavailable: a block that none of its shards can write.
        """
        self._require_usable()
        return snapshot_shards(self._directory, uri, full)

    def close(self) -> None:
        """Fail the lookups under way and end all threads and connections."""
        self._closed = True
        if os.getpid() == self._process:  # the threads of a forked process's parent are not there to be ended
            self._dispatcher.close()

    def _require_usable(self) -> None:
        if os.getpid() != self._process:
            raise forked(self._process)
        if self._closed:
            raise MemoryServiceError("this client was closed: connect a new one")

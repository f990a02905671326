"""Lookups one after the other down a plain grpcio stream to a shard of this project, in the caller's thread.

No dedup, deadline, second shard or retry: the cost of transport and shard alone, and so a bound for the client.
"""

from __future__ import annotations

import itertools
import queue
import time

import grpc
import numpy as np

from memory_service.control.client import ControlClient
from memory_service.protocol.addresses import parse_address
from memory_service.protocol.row_messages import LOOKUP, ids_to_bytes, split_rows
from protos import memory_pb2 as pb

_TIMEOUT_MS = 60_000


class BareStreamClient:
    """Client of one shard that holds the whole table."""

    def __init__(self, address: str, table: str):
        with ControlClient(address) as control:
            info = control.describe()
        assert info.placement is not None, "it serves"
        self._spec = info.tables[table].spec
        self._epoch = info.placement.epoch
        self._numbers = itertools.count(1)
        self._channel = grpc.insecure_channel(f"{parse_address(address).host}:{info.rows_port}")
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._replies = self._channel.stream_stream(LOOKUP)(iter(self._outbox.get, None))

    def lookup(self, rows: np.ndarray) -> np.ndarray:
        """Row ids [n] -> packed rows [n, row_bytes]."""
        request = pb.LookupRequest(
            request_id=next(self._numbers),
            table=self._spec.name,
            fingerprint=bytes.fromhex(self._spec.fingerprint),
            epoch=self._epoch,
            sent_us=int(time.monotonic() * 1e6),
            timeout_ms=_TIMEOUT_MS,
            row_ids=ids_to_bytes(rows, self._spec.rows),
        )
        self._outbox.put(request.SerializeToString())
        found = np.empty((len(rows), self._spec.row_bytes), np.uint8)
        done = 0
        while done < found.size:
            _, content = split_rows(pb.LookupReply, next(self._replies))
            found.reshape(-1)[done : done + content.size] = content
            done += content.size
        return found

    def close(self) -> None:
        """End the stream."""
        self._outbox.put(None)
        self._channel.close()

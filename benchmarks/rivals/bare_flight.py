"""Lookups one after the other down an Arrow Flight stream to a shard of this project, in the caller's thread.

No dedup, deadline, second shard or retry: the cost of transport and shard alone, and so a bound for the client.
"""

from __future__ import annotations

import itertools
import time

import numpy as np
import pyarrow as pa
from pyarrow import flight

from memory_service.control.client import ControlClient
from memory_service.protocol.addresses import parse_address
from memory_service.protocol.flight_paths import LOOKUP
from memory_service.tables.arrow_rows import ID_SCHEMA, view_rows
from protos import memory_pb2 as pb

_TIMEOUT_MS = 60_000


class BareFlightClient:
    """Client of one shard that holds the whole table."""

    def __init__(self, address: str, table: str):
        with ControlClient(address) as control:
            info = control.describe()
        assert info.placement is not None, "it serves"
        self._spec = info.tables[table].spec
        self._epoch = info.placement.epoch
        self._numbers = itertools.count(1)
        self._client = flight.FlightClient((parse_address(address).host, info.rows_port))
        self._writer, self._reader = self._client.do_exchange(flight.FlightDescriptor.for_path(LOOKUP, table))
        self._writer.begin(ID_SCHEMA)

    def lookup(self, rows: np.ndarray) -> np.ndarray:
        """Row ids [n] -> packed rows [n, row_bytes]."""
        header = pb.LookupRequest(
            request_id=next(self._numbers),
            epoch=self._epoch,
            fingerprint=bytes.fromhex(self._spec.fingerprint),
            sent_us=int(time.monotonic() * 1e6),
            timeout_ms=_TIMEOUT_MS,
        )
        self._writer.write_with_metadata(
            pa.RecordBatch.from_arrays([pa.array(rows)], schema=ID_SCHEMA), header.SerializeToString()
        )
        return view_rows(self._reader.read_chunk().data, self._spec.row_bytes)

    def close(self) -> None:
        """End the stream."""
        self._writer.done_writing()
        self._writer.close()
        self._client.close()

"""The client's end of a row stream, in C++: what is left to Python is to find the rows port, and to word errors."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from memory_service.client.stream import OPTIONS, RowRequest, reply_error, rows_address, unavailable
from memory_service.errors import MemoryServiceError, ResourceExhausted
from memory_service.placement.placement import ShardAddress
from memory_service.protocol.security import ClientSecurity
from memory_service.protocol.status import error_of
from memory_service.tables.spec import TableSpec

_UNAVAILABLE = -1  # status of a request whose stream takes none, or broke


class NativeRowStream:
    """As RowStream; what is read and written passes by Python, and rows are copied once, to their place."""

    def __init__(
        self,
        shard: ShardAddress,
        connect_timeout_s: float,
        security: ClientSecurity,
        newer_epoch: Callable[[int], None],
        client: Any,
        table: Callable[[TableSpec], Any],
    ) -> None:
        """Open a stream of a native client, to which `table` describes tables."""
        self._shard = shard
        self._connect_timeout_s = connect_timeout_s
        self._security = security
        self._client = client
        self._table = table
        self._refusal: str | None = None
        self.native = client.stream(shard.shard, newer_epoch, self._ended)
        self._opener = threading.Thread(target=self._open, name=f"rows-{shard.shard}", daemon=True)
        self._opener.start()

    @property
    def retired(self) -> bool:
        """Whether this stream takes no more requests."""
        return bool(self.native.retired)

    def stalled(self, limit_s: float) -> bool:
        """Whether the shard has been silent for `limit_s` seconds while an answer was due."""
        return bool(self.native.stalled(limit_s))

    def send(self, request: RowRequest) -> None:
        """Send a request; its `land` or `fail` is called from another thread, unless it is forgotten first."""
        place = np.empty((len(request.ids), request.spec.row_bytes), np.uint8)
        request.request_id = self.native.next_id()
        self._client.send(
            *(self.native, request.request_id, self._table(request.spec), request.epoch, request.deadline),
            *(request.min_version, request.ids, place),
            lambda count, version: request.land([place[:count]], version),
            lambda status, message: request.fail(self.error(status, message, request)),
        )

    def forget(self, request: RowRequest) -> None:
        """Drop a request whose rows are no longer wanted; a late reply to it is ignored."""
        self.native.forget(request.request_id)

    def break_off(self, why: str, cause: MemoryServiceError | None = None) -> None:
        """Take no more requests, fail the pending ones and end the stream; `cause` may be a refusal of the shard."""
        if isinstance(cause, ResourceExhausted):  # a limit, for which no other replica must be asked
            self._refusal = self._refusal or str(cause)
        self.native.break_off(why)

    def join(self, timeout_s: float) -> bool:
        """Wait until a stream that was broken off has ended; False if `timeout_s` passed first."""
        deadline = time.monotonic() + timeout_s
        self._opener.join(timeout_s)
        return not self._opener.is_alive() and bool(self.native.join(max(0.0, deadline - time.monotonic())))

    def error(self, status: int, message: str, request: RowRequest) -> MemoryServiceError:
        """The error of a request that will not be answered with rows."""
        if status != _UNAVAILABLE:
            return reply_error(self._shard, status, message, request)
        return ResourceExhausted(self._refusal) if self._refusal else unavailable(self._shard, message, request)

    def _open(self) -> None:
        try:
            address = rows_address(self._shard, self._security, self._connect_timeout_s)
            token = self._security.token
            self.native.open(
                *(address, *self._security.pem(), self._security.server_name or ""),
                *(token.header if token else "", OPTIONS),
            )
        except MemoryServiceError as error:
            self.break_off(f"cannot open a stream: {error}", error)
        except Exception as error:  # whatever it is, pending requests will not be answered
            self.break_off(f"the stream broke: {error!r}")

    def _ended(self, ok: bool, details: str, status: str) -> None:
        refusal = error_of(int(status), details) if status else None
        self.break_off("the shard ended the stream" if ok else f"the stream broke: {refusal or details}", refusal)

"""The server of a shard: its control door and its rows door."""

from __future__ import annotations

import threading
import uuid
from types import TracebackType

from memory_service.protocol.addresses import Address, check_host, check_port, public_host
from memory_service.protocol.security import ServerSecurity
from memory_service.server.control_door import ControlDoor
from memory_service.server.limits import Admission, DoorLimits
from memory_service.server.listening import check_free
from memory_service.server.native_rows_door import NativeRowsDoor
from memory_service.server.rows_door import RowsDoor
from memory_service.shard.shard import Shard

DEFAULT_GRACE_S = 5.0


class ShardServer:
    """Serves a shard at its control door and its rows door.

    The shard may be loaded and activated before or after the start; until then, lookups are refused and the health
    check reports "not serving".
    """

    def __init__(
        self,
        shard: Shard,
        host: str = "127.0.0.1",
        port: int = 0,
        rows_port: int = 0,
        security: ServerSecurity | None = None,
        limits: DoorLimits | None = None,
        advertise: str | None = None,
    ) -> None:
        """Check the arguments; `start` listens.

        Args:
            shard: the shard to serve.
            host: address or name of this machine to listen on; 0.0.0.0 and :: are all of its addresses.
            port: port of the control door; 0 for any free one.
            rows_port: port of the rows door; 0 for any free one.
            security: TLS and token of both doors; None for plaintext without a token.
            limits: what clients may have under way; None for the defaults.
            advertise: host by which clients reach this shard; None if they reach it by `host`.

        Raises:
            ValueError: A host or port is not valid, or clients cannot reach the shard by it.
        """
        self.shard = shard
        self.incarnation = uuid.uuid4().hex
        self._host = check_host(host)
        self._advertised = public_host(host, advertise)
        self._ports = check_port(port), check_port(rows_port, "rows_port")
        self._security = security or ServerSecurity()
        self._limits = limits or DoorLimits()
        self._stopped = threading.Event()
        self._control: ControlDoor | None = None
        self._rows: RowsDoor | NativeRowsDoor | None = None

    def start(self) -> ShardServer:
        """Open both doors.

        Raises:
            OSError: A port is taken, or the host is no address of this machine.
        """
        port, rows_port = self._ports
        for taken in self._ports:
            check_free(self._host, taken)
        admission = Admission(self.shard.name, self._limits)
        self._rows = self._open_rows(rows_port, admission)
        try:
            self._control = ControlDoor(
                self.shard, self.incarnation, self._rows, self._host, port, self._security, self._limits, admission
            )
        except OSError:
            self._rows.stop(DEFAULT_GRACE_S)
            raise
        return self

    def _open_rows(self, port: int, admission: Admission) -> RowsDoor | NativeRowsDoor:
        if self.shard.native:
            return NativeRowsDoor(self.shard, self._host, port, self._security, self._limits)
        return RowsDoor(self.shard, self._host, port, self._security, self._limits, admission)

    @property
    def implementation(self) -> str:
        """The implementation of the rows door, "python" or "native"."""
        assert self._rows is not None, "start() comes first"
        return self._rows.implementation

    @property
    def address(self) -> str:
        """HOST:PORT by which clients reach the control door."""
        return str(Address(self._advertised, self._listening().port))

    @property
    def listens_on(self) -> str:
        """HOST:PORT on which the control door listens."""
        return str(Address(self._host, self._listening().port))

    @property
    def rows_port(self) -> int:
        """Port of the rows door."""
        assert self._rows is not None, "start() comes first"
        return self._rows.port

    def wait(self, timeout_s: float | None = None) -> bool:
        """Block until the server is stopped; return False if `timeout_s` passed first."""
        return self._stopped.wait(timeout_s)

    def stop(self, grace_s: float = DEFAULT_GRACE_S) -> bool:
        """Close both doors, after at most `grace_s` seconds for the calls under way.

        Returns:
            False if a client that does not react still holds a stream open; the port is closed nevertheless.
        """
        ended = self._control.stop(grace_s) if self._control else None
        clean = self._rows.stop(grace_s) if self._rows else True
        if ended:
            ended.wait(grace_s)
        self._stopped.set()
        return clean

    def _listening(self) -> ControlDoor:
        assert self._control is not None, "start() comes first"
        return self._control

    def __enter__(self) -> ShardServer:
        return self if self._control else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

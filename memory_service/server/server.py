"""A shard with its two doors open."""

from __future__ import annotations

import socket
import threading
import uuid
from types import TracebackType

from memory_service.protocol.security import ServerSecurity
from memory_service.server.control_door import ControlDoor
from memory_service.server.limits import DoorLimits
from memory_service.server.rows_door import RowsDoor
from memory_service.shard.shard import Shard

DEFAULT_GRACE_S = 5.0


class ShardServer:
    """Serves a shard on two ports, 0 meaning any free one. OSError if a port is taken.

    The shard may be loaded and activated before or after the start; until then lookups and the health check say so.
    """

    def __init__(
        self,
        shard: Shard,
        host: str = "127.0.0.1",
        port: int = 0,
        rows_port: int = 0,
        security: ServerSecurity | None = None,
        limits: DoorLimits | None = None,
    ) -> None:
        self.shard = shard
        self.incarnation = uuid.uuid4().hex
        self._host = host
        self._ports = port, rows_port
        self._security = security or ServerSecurity()
        self._limits = limits or DoorLimits()
        self._stopped = threading.Event()
        self._control: ControlDoor | None = None
        self._rows: RowsDoor | None = None

    def start(self) -> ShardServer:
        """Open both doors."""
        port, rows_port = self._ports
        _check_free(self._host, rows_port)
        self._rows = RowsDoor(self.shard, self._host, rows_port, self._security, self._limits)
        try:
            self._control = ControlDoor(
                self.shard, self.incarnation, self._rows.port, self._host, port, self._security, self._limits
            )
        except OSError:
            self._rows.stop(DEFAULT_GRACE_S)
            raise
        return self

    @property
    def address(self) -> str:
        """host:port of the control door."""
        assert self._control is not None, "start() comes first"
        return f"{self._host}:{self._control.port}"

    @property
    def rows_port(self) -> int:
        """Port of the rows door."""
        assert self._rows is not None, "start() comes first"
        return self._rows.port

    def wait(self, timeout_s: float | None = None) -> bool:
        """Block until stopped; False if `timeout_s` passed first."""
        return self._stopped.wait(timeout_s)

    def stop(self, grace_s: float = DEFAULT_GRACE_S) -> bool:
        """Close both doors, giving calls under way `grace_s` seconds.

        False if a client that does not react still holds a stream open; its port is closed all the same.
        """
        ended = self._control.stop(grace_s) if self._control else None
        clean = self._rows.stop(grace_s) if self._rows else True
        if ended:
            ended.wait(grace_s)
        self._stopped.set()
        return clean

    def __enter__(self) -> ShardServer:
        return self if self._control else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _check_free(host: str, port: int) -> None:
    """Flight would share a taken port with its owner (SO_REUSEPORT), and does not say why it cannot listen."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise OSError(
                f"cannot listen on {host}:{port}: choose an address of this machine and a free port or 0 ({error})"
            ) from error

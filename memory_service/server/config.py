"""The configuration of a shard process, checked before a port is opened or a block is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from memory_service.protocol.addresses import (
    Address,
    check_host,
    check_port,
    is_loopback,
    is_wildcard,
    parse_address,
    public_host,
)
from memory_service.protocol.security import ServerSecurity
from memory_service.server.limits import DoorLimits


@dataclass(frozen=True)
class ServeConfig:
    """What one shard process serves, and where.

    Raises:
        ValueError: A value is not possible, or does not go with the others; the message begins with its field.
    """

    snapshot: str | Path | None = None
    """Snapshot whose blocks to serve; None for a shard that joins a memory and waits for blocks."""
    join: str | None = None
    """Name of a shard that joins, under which placements will know it."""
    host: str = "127.0.0.1"
    """Address or name of this machine to listen on; 0.0.0.0 and :: are all of its addresses."""
    advertise: str | None = None
    """Host by which clients reach this shard; None for the one in `peers`, or else `host`."""
    port: int = 0
    """Port of the control door; 0 for any free one."""
    rows_port: int = 0
    """Port of the rows door; 0 for any free one."""
    shard_index: int = 0
    """Place of this shard in `peers`, counted from 0."""
    peers: Sequence[str] | None = None
    """Control addresses HOST:PORT of all shards in order, this one included, equal on all of them; the shards are named
    shard-0, shard-1, ... in that order. None for a shard that serves every block."""
    replicas: int = 1
    """Shards that serve each block, equal on all of them."""
    share_memory: bool = False
    """Let processes of the same user on this machine map the rows; see ShardConfig."""
    metrics_port: int | None = None
    """Port of the metrics door, for Prometheus; 0 for any free one, None for no metrics."""
    metrics_host: str = "127.0.0.1"
    """Address or name of this machine on which the metrics door listens."""
    metrics_secure: bool = False
    """Ask for TLS, client certificates and token at the metrics door too, as `security` says; else it is plain HTTP."""
    security: ServerSecurity = field(default_factory=ServerSecurity)
    """TLS and token of the control door and the rows door."""
    limits: DoorLimits = field(default_factory=DoorLimits)
    """What clients may have under way."""

    def __post_init__(self) -> None:
        if bool(self.snapshot) == bool(self.join):
            raise ValueError("join: give the name under which placements will know this shard, or else a `snapshot`")
        if not 1 <= self.replicas <= max(1, len(self.peers or ())):
            raise ValueError(f"replicas: {self.replicas} is not possible; give 1, or up to the number of `peers`")
        self._check_ports()
        self._check_peers()
        self._check_metrics()
        _ = self.advertised  # raises if clients could not call this shard

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Control addresses of all shards in order; empty for a shard that serves every block."""
        return tuple(parse_address(peer, "peers") for peer in self.peers or ())

    @property
    def advertised(self) -> str:
        """Host by which clients reach this shard."""
        return public_host(self.host, self.addresses[self.shard_index].host if self.peers else self.advertise)

    @property
    def exposes_metrics(self) -> bool:
        """Whether strangers may read the metrics of a shard that they may not call."""
        locked = self.security.cert_file or self.security.token
        return bool(locked) and not self.metrics_secure and not is_loopback(check_host(self.metrics_host))

    def _check_ports(self) -> None:
        check_host(self.host)
        check_port(self.port)
        check_port(self.rows_port, "rows_port")
        if self.rows_port and self.rows_port == self.port:
            raise ValueError(f"rows_port: {self.rows_port} is `port` too; give another one, or 0 for any free port")

    def _check_peers(self) -> None:
        addresses = self.addresses
        if not 0 <= self.shard_index < max(1, len(addresses)):
            raise ValueError(
                f"shard_index: {self.shard_index} is not among the {max(1, len(addresses))} shards; count from 0"
            )
        if not addresses:
            return
        if self.join:
            raise ValueError("peers: a shard that joins is told its placement; leave them out")
        for number, address in enumerate(addresses):
            if address in addresses[:number]:
                raise ValueError(f"peers: {address} stands there twice; give each shard an address of its own")
            if is_wildcard(address.host):
                raise ValueError(f"peers: {address} is no address that others can call; give one of that machine")
        self._check_own(addresses[self.shard_index])

    def _check_own(self, own: Address) -> None:
        if self.port != own.port:
            raise ValueError(
                f"port: {self.port} is not the port of shard {self.shard_index} in `peers`, {own}; give {own.port}"
            )
        if self.advertise is not None and check_host(self.advertise, "advertise") != own.host:
            raise ValueError(
                f"advertise: {self.advertise} is not the host of shard {self.shard_index} in `peers`, {own}; "
                "leave it out"
            )

    def _check_metrics(self) -> None:
        check_host(self.metrics_host, "metrics_host")
        if self.metrics_port is not None:
            check_port(self.metrics_port, "metrics_port")
        if self.metrics_secure and not (self.security.cert_file or self.security.token):
            raise ValueError("metrics_secure: the shard has neither a certificate nor a token to ask for; give one")

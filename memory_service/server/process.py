"""One shard as a plain process, without Ray: with the blocks of a snapshot, or waiting for some, until told to stop."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NoReturn

from memory_service.errors import MemoryServiceError
from memory_service.placement.placement import Placement, ShardAddress
from memory_service.protocol.bearer_token import BearerToken
from memory_service.protocol.security import ServerSecurity
from memory_service.server.arrow_memory import restart_bounded
from memory_service.server.server import ShardServer
from memory_service.shard.shard import Shard, ShardConfig
from memory_service.snapshots.manifest import split_pin
from memory_service.snapshots.snapshot import Snapshot, generations, load_newest
from memory_service.snapshots.store import open_store

STATIC_EPOCH = 1
_LOCKS_HELP = """Each can be given in the environment instead. A shard that copies blocks from others is a client of
theirs, and shows what a client shows: see `engram memory describe --help`."""
_LOCKS = {
    "--tls-cert": "certificate of both doors, PEM: TLS only from then on (ENGRAM_MEMORY_TLS_CERT)",
    "--tls-key": "its key, PEM (ENGRAM_MEMORY_TLS_KEY)",
    "--client-ca": "who signs the certificates that clients must show, PEM: mutual TLS (ENGRAM_MEMORY_CLIENT_CA)",
    "--token-file": "token that every call must carry (ENGRAM_MEMORY_TOKEN_FILE, or ENGRAM_MEMORY_TOKEN itself)",
}


@dataclass(frozen=True)
class ServeConfig:
    """What one shard process is. ValueError for what cannot be."""

    snapshot: str | Path | None = None
    """Whose blocks to serve; None for a shard that waits for blocks."""
    join: str | None = None
    """Name by which placements will know a shard that waits."""
    host: str = "127.0.0.1"
    port: int = 0
    """Of the control door; 0 for any free one."""
    rows_port: int = 0
    shard_index: int = 0
    """Place among the peers."""
    peers: Sequence[str] | None = None
    """Control addresses host:port of all shards in order, this one included, equal on all of them; the shards are named
    shard-0, shard-1, ... in that order. None for a shard that serves every block."""
    replicas: int = 1
    """Shards that serve each block, equal on all of them."""
    share_memory: bool = False
    """See ShardConfig."""
    metrics_port: int | None = None
    """For Prometheus; None for no metrics."""
    security: ServerSecurity | None = None

    def __post_init__(self) -> None:
        if self.snapshot is None and not self.join:
            raise ValueError("--join: give the name under which placements will know this shard")
        shards = len(self.peers or [""])
        if not 0 <= self.shard_index < shards:
            raise ValueError(f"shard_index={self.shard_index} is not among the {shards} shards: count from 0")
        if self.peers and not self.port:
            raise ValueError("--port: with --peers, give the port that this shard has in the list")


def serve(config: ServeConfig) -> NoReturn:
    """Serve until SIGTERM or SIGINT, and end the process. Call from the main thread.

    ValueError, OSError or MemoryServiceError if it cannot start.
    """
    told, telling = socket.socketpair()
    telling.setblocking(False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)  # at once, while still loading
    server = start(config)
    # A signal just before a thread blocks would wake nobody; the byte that Python writes for it waits to be read.
    signal.set_wakeup_fd(telling.fileno())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    with _metrics(server, config):
        doing = "serving" if config.snapshot else "waiting"
        print(f"engram memory {server.shard.name} {doing} on {server.address}", flush=True)
        told.recv(1)
    if not server.stop():
        print("engram memory: stopped while a client still held a stream open", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # threads of the doors' libraries that still wait for a client would keep the interpreter from ending


@contextmanager
def _metrics(server: ShardServer, config: ServeConfig) -> Iterator[None]:
    if config.metrics_port is None:
        yield
        return
    shard = server.shard
    try:
        from memory_service.metrics.prometheus import MetricsServer

        metrics = MetricsServer(shard.collect, {"shard": shard.name}, config.host, config.metrics_port)
    except ModuleNotFoundError as error:
        server.stop()
        raise ValueError(f"metrics_port: {error.name} is missing: pip install 'engram-memory[server]'") from error
    except OSError:
        server.stop()
        raise
    with metrics:
        print(f"engram memory {shard.name} metrics on {metrics.url}", flush=True)
        yield


def _leave(*_: object) -> None:
    raise SystemExit(0)


def start(config: ServeConfig) -> ShardServer:
    """A started server: one that waits, or one of a placement that never changes, computed alike by every peer."""
    if config.snapshot is None:
        return _open_doors(config)

    def start_with(opened: Snapshot) -> ShardServer:
        server = _open_doors(config)
        try:
            peers = config.peers or [server.address]
            addresses = [ShardAddress(f"shard-{i}", address) for i, address in enumerate(peers)]
            placement = Placement.build(STATIC_EPOCH, addresses, opened.specs.values(), config.replicas)
            server.shard.prepare(placement, snapshot_uri=opened.uri)
            server.shard.activate(placement)
        except BaseException:
            server.stop()
            raise
        return server

    return load_newest(_same_for_all(config.snapshot) if config.peers else config.snapshot, start_with)


def _open_doors(config: ServeConfig) -> ShardServer:
    shard_config = ShardConfig(share_memory=config.share_memory, node=socket.gethostname())
    shard = Shard(config.join or f"shard-{config.shard_index}", shard_config)
    return ShardServer(shard, config.host, config.port, config.rows_port, config.security).start()


def _same_for_all(uri: str | Path) -> str:
    """The URI of one generation: peers that start one after the other could each find another one the newest."""
    snapshot = Snapshot.open(uri)
    directory, generation = split_pin(uri)
    if generation is None and len(found := generations(open_store(directory))) > 1:
        raise ValueError(
            f"--snapshot: {directory} holds the generations {found}: with --peers name one, so that all shards load "
            f"the same, as in {snapshot.uri}"
        )
    return snapshot.uri


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m memory_service.server.process`."""
    parser = argparse.ArgumentParser(prog="python -m memory_service.server.process", description=__doc__)
    add_arguments(parser)
    try:
        serve(serve_config(parser.parse_args(arguments)))
    except (MemoryServiceError, ValueError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `serve`, by name."""
    blocks = parser.add_mutually_exclusive_group(required=True)
    blocks.add_argument(
        "--snapshot",
        metavar="URI",
        help="snapshot directory, or a URI of one; DIR?generation=N for another than the newest one",
    )
    blocks.add_argument("--join", metavar="NAME", help="hold nothing yet, and wait under this name for blocks")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    parser.add_argument("--port", type=int, default=0, help="control port, 0 for any free one (default %(default)s)")
    parser.add_argument(
        "--rows-port",
        metavar="PORT",
        type=int,
        default=0,
        help="port for rows, 0 for any free (default %(default)s)",
    )
    parser.add_argument(
        "--shard-index", metavar="I", type=int, default=0, help="place in --peers, from 0 (default %(default)s)"
    )
    parser.add_argument(
        "--peers",
        metavar="HOST:PORT,...",
        type=lambda text: text.split(",") if text else None,
        help="control addresses of all shards, this one included",
    )
    parser.add_argument(
        "--replicas", metavar="R", type=int, default=1, help="shards that serve each block (default %(default)s)"
    )
    parser.add_argument(
        "--share-memory",
        action="store_true",
        help="let processes of the same user on this machine read the rows without asking; most systems then keep them "
        "in small pages",
    )
    parser.add_argument(
        "--metrics-port",
        metavar="PORT",
        type=int,
        help="serve metrics for Prometheus at http://HOST:PORT/metrics, 0 for any free port (default: do not)",
    )
    group = parser.add_argument_group("locks", _LOCKS_HELP)
    for option, help_text in _LOCKS.items():
        group.add_argument(option, metavar="FILE", type=Path, help=help_text)


def serve_config(args: argparse.Namespace) -> ServeConfig:
    """The configuration that parsed arguments stand for; ValueError for locks that do not fit together."""
    given = ServerSecurity.from_environment()
    security = ServerSecurity(
        cert_file=args.tls_cert or given.cert_file,
        key_file=args.tls_key or given.key_file,
        client_ca_file=args.client_ca or given.client_ca_file,
        token=BearerToken.from_file(args.token_file) if args.token_file else given.token,
    )
    names = [field.name for field in fields(ServeConfig) if field.name != "security"]
    return ServeConfig(**{name: getattr(args, name) for name in names}, security=security)


if __name__ == "__main__":
    restart_bounded()
    sys.exit(main())

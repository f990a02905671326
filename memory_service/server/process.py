"""A shard as a plain process without Ray, which serves the blocks of a snapshot or waits to be given blocks."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from memory_service.errors import MemoryServiceError
from memory_service.placement.placement import Placement, ShardAddress
from memory_service.protocol.security import ServerSecurity
from memory_service.server.arguments import add_arguments, in_flags, serve_config
from memory_service.server.config import ServeConfig
from memory_service.server.listening import check_free
from memory_service.server.open_files import allow_open_files
from memory_service.server.server import ShardServer
from memory_service.shard.shard import Shard, ShardConfig
from memory_service.snapshots.names import split_pin
from memory_service.snapshots.snapshot import Snapshot, generations, load_newest
from memory_service.snapshots.store import open_store

STATIC_EPOCH = 1


def serve(config: ServeConfig) -> NoReturn:
    """Serve until SIGTERM or SIGINT, then end the process. To be called from the main thread.

    Raises:
        OSError: A port is taken, or a host is no address of this machine.
        ValueError, MemoryServiceError: the snapshot cannot be served.
    """
    wake_reader, wake_writer = socket.socketpair()
    wake_writer.setblocking(False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)  # while loading, end at once
    if (possible := allow_open_files(wanted := config.limits.streams)) < wanted:
        _warn(f"the system allows files for {possible} streams, fewer than the limit of {wanted}: raise `ulimit -Hn`")
    server = start(config)
    # A signal just before recv() would not wake it; the byte that Python writes for the signal is there to be read.
    signal.set_wakeup_fd(wake_writer.fileno())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    with _metrics(server, config):
        print(_greeting(server, config), flush=True)
        wake_reader.recv(1)
    if not server.stop():
        _warn("stopped while a client still held a stream open")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # threads of gRPC that still wait for a client would keep the interpreter from ending


def _greeting(server: ShardServer, config: ServeConfig) -> str:
    listening = "" if server.address == server.listens_on else f", listening on {server.listens_on},"
    doing = "serving" if config.snapshot else "waiting"
    return f"engram memory {server.shard.name} ({server.implementation}){listening} {doing} on {server.address}"


def _warn(message: str) -> None:
    print(f"engram memory: {message}", file=sys.stderr, flush=True)


@contextmanager
def _metrics(server: ShardServer, config: ServeConfig) -> Iterator[None]:
    if config.metrics_port is None:
        yield
        return
    shard, locks = server.shard, config.security if config.metrics_secure else ServerSecurity()
    try:
        from memory_service.server.metrics_door import MetricsDoor

        metrics = MetricsDoor(
            shard.collect, {"shard": shard.name}, config.metrics_host, config.metrics_port, locks, config.advertised
        )
    except ModuleNotFoundError as error:
        server.stop()
        raise ValueError(f"metrics_port: {error.name} is missing: pip install 'engram-memory[server]'") from error
    except OSError:
        server.stop()
        raise
    with metrics:
        if config.exposes_metrics:
            _warn(
                f"{metrics.url} asks for no certificate or token: all who reach it can read names and sizes of tables "
                "and this shard's traffic; give --metrics-secure, or keep it on a --metrics-host of this machine only"
            )
        print(f"engram memory {shard.name} metrics{metrics.reach} on {metrics.url}", flush=True)
        yield


def _leave(*_: object) -> None:
    raise SystemExit(0)


def start(config: ServeConfig) -> ShardServer:
    """Start a server that waits for blocks, or one with a fixed placement, which every peer computes alike.

    Raises:
        OSError: A port is taken, or a host is no address of this machine.
        ValueError, MemoryServiceError: the snapshot cannot be served.
    """
    if config.metrics_port is not None:
        check_free(config.metrics_host, config.metrics_port, "serve metrics")  # before the blocks are loaded
    if config.snapshot is None:
        return _open_doors(config)

    def start_with(opened: Snapshot) -> ShardServer:
        server = _open_doors(config)
        try:
            peers = list(map(str, config.addresses)) or [server.address]
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
    return ShardServer(
        shard, config.host, config.port, config.rows_port, config.security, config.limits, config.advertised
    ).start()


def _same_for_all(uri: str | Path) -> str:
    """The URI of one generation: to peers that start at different times, different generations could be the newest."""
    snapshot = Snapshot.open(uri)
    directory, generation = split_pin(uri)
    if generation is None and len(found := generations(open_store(directory))) > 1:
        raise ValueError(
            f"snapshot: {directory} holds the generations {found}: with `peers` name one, so that all shards load the "
            f"same, as in {snapshot.uri}"
        )
    return snapshot.uri


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `python -m memory_service.server.process`; return the exit code of a failure."""
    parser = argparse.ArgumentParser(prog="python -m memory_service.server.process", description=__doc__)
    add_arguments(parser)
    try:
        serve(serve_config(parser.parse_args(arguments)))
    except (MemoryServiceError, ValueError, OSError) as error:
        print(f"{parser.prog}: {in_flags(str(error), parser)}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

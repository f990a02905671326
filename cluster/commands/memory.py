"""`engram memory`: serve the tables of a snapshot, with or without Ray, and describe a running memory."""

from __future__ import annotations

import argparse
import json
from typing import Any

from cluster.commands import memory_fill, memory_pool, memory_snapshots

_DESCRIPTION = """\
Serve memory tables from this machine's RAM or from a Ray cluster's, look at a running memory, or make a snapshot.
"""
_SERVE_DESCRIPTION = """\
Serve a snapshot's tables until SIGTERM or Ctrl-C. Prints "engram memory shard-0 serving on HOST:PORT" once ready.

Alone, the process serves every block. As one of several, it is told the control addresses of all of them, itself
included, in the same order everywhere, and serves its share; --port must then be its own port in that list.

With --join it waits without blocks until memory_service.control.reshape makes it part of a memory.

A shard that listens on all addresses of its machine (--host 0.0.0.0 or ::) needs --advertise, the host that clients are
told, unless --peers says it. Metrics are plain HTTP, so only this machine reads them; see --metrics-host and
--metrics-secure.
"""
_SERVE_EPILOG = """\
examples:
  engram memory serve --snapshot models/tiny-code/memory --port 7000
  engram memory serve --snapshot /data/memory --host 10.0.0.5 --port 7000 \\
    --shard-index 0 --peers 10.0.0.5:7000,10.0.0.6:7000
  engram memory serve --snapshot /data/memory --host :: --advertise shard-0.example --port 7000
  engram memory serve --snapshot /data/memory --host 10.0.0.5 --port 7000 --metrics-port 9464 --metrics-host 10.0.0.5
  engram memory serve --snapshot /data/memory --host 10.0.0.5 --port 7000 \\
    --tls-cert shard.pem --tls-key shard.key --client-ca ca.pem --token-file token
"""
_DESCRIBE_EPILOG = """\
A memory with locks is opened with ENGRAM_MEMORY_CA (TLS), ENGRAM_MEMORY_CERT and ENGRAM_MEMORY_KEY (mutual TLS),
ENGRAM_MEMORY_TOKEN_FILE or ENGRAM_MEMORY_TOKEN, and ENGRAM_MEMORY_SERVER_NAME where the host is not in its certificate.

examples:
  engram memory describe 127.0.0.1:7000
  engram memory describe '[::1]:7000'
  engram memory describe memory --address ray-head:6379
"""


def add_parser(commands: Any, formatter: type[argparse.HelpFormatter]) -> None:
    """Add `memory` to the subparsers of `engram`."""
    parser = commands.add_parser(
        "memory", help="serve, describe or make memory tables", description=_DESCRIPTION, formatter_class=formatter
    )
    parser.set_defaults(parser=parser)
    actions = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=type(parser))
    _add_serve(actions, formatter)
    _add_describe(actions, formatter)
    memory_pool.add_start(actions, formatter)
    memory_pool.add_scale(actions, formatter)
    memory_pool.add_stop(actions, formatter)
    memory_fill.add_import(actions, formatter)
    memory_fill.add_random(actions, formatter)
    memory_snapshots.add_snapshot(actions, formatter)
    memory_snapshots.add_verify(actions, formatter)
    memory_snapshots.add_prune(actions, formatter)


def _add_serve(actions: Any, formatter: type[argparse.HelpFormatter]) -> None:
    from memory_service.server.arguments import add_arguments

    parser = actions.add_parser(
        "serve",
        help="serve a snapshot's tables",
        description=_SERVE_DESCRIPTION,
        epilog=_SERVE_EPILOG,
        formatter_class=formatter,
    )
    add_arguments(parser)
    parser.set_defaults(run=serve)


def _add_describe(actions: Any, formatter: type[argparse.HelpFormatter]) -> None:
    parser = actions.add_parser(
        "describe",
        help="show shards, tables and counters of a running memory",
        description="Show the shards of a memory, the tables they hold and the lookups they have served.",
        epilog=_DESCRIBE_EPILOG,
        formatter_class=formatter,
    )
    parser.add_argument("memory", metavar="HOST:PORT|NAME", help="any of its shards, or a pool on a Ray cluster")
    memory_pool.add_address(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=describe)


def serve(args: argparse.Namespace) -> int:
    """Serve one shard until a signal ends the process."""
    from memory_service.server.arguments import serve_config
    from memory_service.server.process import serve

    serve(serve_config(args))


def describe(args: argparse.Namespace) -> int:
    """Print the shards, tables and counters of a running memory."""
    from cluster.commands.memory_report import MemoryReport
    from memory_service.protocol.addresses import parse_address

    if ":" in args.memory:
        address = str(parse_address(args.memory, "memory"))
    else:
        address = memory_pool.address_of(args.memory, args.address)
    report = MemoryReport.of(address)
    print(json.dumps(report.to_json(), indent=2) if args.json else report.to_text())
    return 0

"""`engram memory start`, `scale` and `stop`: a memory pool on a Ray cluster that outlives the commands."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cluster.pool.policies.autoscale import AutoscaleConfig

_DEFAULT_NAME = "memory"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_START_DESCRIPTION = """\
Start a memory pool on a running Ray cluster. Prints "engram memory NAME serving on HOST:PORT" once it serves; pass the
address to `engram generate --memory`. The pool heals by itself and stays until `engram memory stop`. Its shards run on
the nodes with the label engram/role=memory, if the cluster has any.
"""
_START_EPILOG = """\
examples:
  engram memory start --snapshot /data/memory --shards 4 --replicas 2
  engram memory start --snapshot s3://bucket/memory --shards 4 --autoscale 2:16 --address ray-head:6379
"""
_SCALE_DESCRIPTION = """\
Change the number of shards or replicas of a running pool while it serves. Blocks move from shard to shard; the command
returns once they have moved, and prints how many moved.
"""
_SCALE_EPILOG = """\
examples:
  engram memory scale --shards 5
  engram memory scale --shards 3 --replicas 2 --name memory --address ray-head:6379
"""
_STOP_DESCRIPTION = "End a memory pool and its shards, once they have answered their pending requests."
_STOP_EPILOG = """\
example:
  engram memory stop --name memory --address ray-head:6379
"""


def add_start(actions: Any, formatter: type[argparse.HelpFormatter]) -> None:
    """Add `start` to the subparsers of `engram memory`."""
    from memory_service.server.arguments import add_limits

    parser = actions.add_parser(
        "start",
        help="start a memory pool on a Ray cluster",
        description=_START_DESCRIPTION,
        epilog=_START_EPILOG,
        formatter_class=formatter,
    )
    parser.add_argument("--snapshot", metavar="URI", required=True, help="snapshot, at a URI that every node can read")
    parser.add_argument("--shards", metavar="N", type=int, default=2, help="default %(default)s")
    parser.add_argument(
        "--replicas", metavar="R", type=int, default=1, help="shards that hold each block (default %(default)s)"
    )
    parser.add_argument(
        "--autoscale",
        metavar="MIN:MAX",
        type=_range,
        help="number of shards that the load may choose (default: always --shards)",
    )
    _add_which(parser)
    add_limits(parser)
    parser.set_defaults(run=start)


def add_scale(actions: Any, formatter: type[argparse.HelpFormatter]) -> None:
    """Add `scale` to the subparsers of `engram memory`."""
    parser = actions.add_parser(
        "scale",
        help="change the number of shards or replicas of a pool",
        description=_SCALE_DESCRIPTION,
        epilog=_SCALE_EPILOG,
        formatter_class=formatter,
    )
    parser.add_argument("--shards", metavar="N", type=int, help="default: as many as now")
    parser.add_argument("--replicas", metavar="R", type=int, help="shards that hold each block (default: as now)")
    _add_which(parser)
    parser.set_defaults(run=scale)


def add_stop(actions: Any, formatter: type[argparse.HelpFormatter]) -> None:
    """Add `stop` to the subparsers of `engram memory`."""
    parser = actions.add_parser(
        "stop",
        help="end a memory pool",
        description=_STOP_DESCRIPTION,
        epilog=_STOP_EPILOG,
        formatter_class=formatter,
    )
    _add_which(parser)
    parser.set_defaults(run=stop)


def _add_which(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", metavar="NAME", default=_DEFAULT_NAME, help="name of the pool (default %(default)s)")
    add_address(parser)


def add_address(parser: argparse.ArgumentParser) -> None:
    """Add the argument that names the Ray cluster."""
    parser.add_argument(
        "--address", metavar="RAY", default="auto", help="Ray cluster, HOST:PORT (default: the cluster on this machine)"
    )


def start(args: argparse.Namespace) -> int:
    """Start a pool and print the address of a shard."""
    from cluster.pool.config import PoolConfig
    from cluster.pool.named_pools import pool_exists, serve_pool
    from cluster.pool.policies.plan import Shape
    from cluster.ray_runtime import ray_session
    from memory_service.server.arguments import limits_from

    if not _NAME.fullmatch(args.name):
        raise ValueError(f"--name: {args.name!r} is not a name; use letters, digits, '.', '_' and '-'")
    shape = Shape(args.shards, args.replicas)
    config = PoolConfig(autoscale=_autoscale(args), limits=limits_from(args))
    with ray_session(args.address):
        if pool_exists(args.name):
            raise ValueError(f"--name: a pool {args.name!r} runs already; `engram memory scale` or `stop` it")
        _, address = serve_pool(_absolute(args.snapshot), shape, args.name, detached=True, config=config)
        print(f"engram memory {args.name} serving on {address}", flush=True)
    return 0


def scale(args: argparse.Namespace) -> int:
    """Change the numbers of a pool and print what moved."""
    from cluster.pool.named_pools import find_pool
    from cluster.ray_runtime import fetch, ray_session

    if args.shards is None and args.replicas is None:
        raise ValueError("--shards: nothing to change; give --shards or --replicas")
    with ray_session(args.address):
        report = fetch(find_pool(args.name).scale.remote(args.shards, args.replicas))
    print(f"engram memory {args.name}: {report.to_text()}")
    return 0


def stop(args: argparse.Namespace) -> int:
    """End a pool."""
    from cluster.pool.named_pools import find_pool, stop_pool
    from cluster.ray_runtime import ray_session

    with ray_session(args.address):
        stop_pool(find_pool(args.name))
    print(f"engram memory {args.name}: stopped")
    return 0


def address_of(name: str, ray_address: str) -> str:
    """Wait until a pool serves; return host:port of one of its shards."""
    from cluster.pool.named_pools import pool_address
    from cluster.ray_runtime import ray_session

    with ray_session(ray_address):
        return pool_address(name)


def _range(text: str) -> tuple[int, int]:
    low, colon, high = text.partition(":")
    if not (colon and low.isdigit() and high.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a range; write MIN:MAX, such as 2:8")
    return int(low), int(high)


def _autoscale(args: argparse.Namespace) -> AutoscaleConfig | None:
    from cluster.pool.policies.autoscale import AutoscaleConfig

    if args.autoscale is None:
        return None
    config = AutoscaleConfig(*args.autoscale)
    if not args.replicas <= config.min_shards <= args.shards <= config.max_shards:
        raise ValueError(
            f"--autoscale: {config.min_shards}:{config.max_shards} must include --shards {args.shards}, and MIN be no "
            f"less than --replicas {args.replicas}"
        )
    return config


def _absolute(uri: str) -> str:
    """Make a local path absolute, as other processes may run in other folders; leave a URI as it is."""
    return uri if "://" in uri else str(Path(uri).resolve())

"""`engram memory snapshot`, `verify` and `prune`: write, check and tidy the snapshots of a memory."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memory_service.snapshots.upkeep import GenerationReport

_SNAPSHOT_DESCRIPTION = """\
Write the tables of a running memory. Every shard writes its own blocks, so all must see the directory. If it holds a
snapshot of this memory, a new generation is added: it stores the blocks that changed and shares the files of others.
"""
_SNAPSHOT_EPILOG = """\
example:
  engram memory snapshot 127.0.0.1:7000 --snapshot /data/memory
"""
_VERIFY_DESCRIPTION = """\
Read every block of every generation and compare checksums. All damage is named; the exit code is 1 if there is any.
"""
_VERIFY_EPILOG = """\
example:
  engram memory verify --snapshot /data/memory
"""
_PRUNE_DESCRIPTION = """\
Delete old generations, and the files that only they need. The newest whole generations stay, at least one. Only files
that this snapshot has provably written are deleted, and nothing behind a symbolic link. A memory pool that serves a
deleted generation goes on with the newest one of the same rows; without one, it cannot reload what its shards lose.
"""
_PRUNE_EPILOG = """\
example:
  engram memory prune --snapshot /data/memory --keep 3
"""


def add_snapshot(actions: Any, formatter: type[argparse.HelpFormatter]) -> None:
    """Add `snapshot` to the subparsers of `engram memory`."""
    parser = actions.add_parser(
        "snapshot",
        help="write a snapshot of a running memory",
        description=_SNAPSHOT_DESCRIPTION,
        epilog=_SNAPSHOT_EPILOG,
        formatter_class=formatter,
    )
    parser.add_argument("address", metavar="HOST:PORT", help="control address of any of its shards")
    _add_uri(parser)
    parser.add_argument("--full", action="store_true", help="write unchanged blocks too, sharing no file")
    parser.set_defaults(run=snapshot)


def add_verify(actions: Any, formatter: type[argparse.HelpFormatter]) -> None:
    """Add `verify` to the subparsers of `engram memory`."""
    parser = actions.add_parser(
        "verify",
        help="read a snapshot and name all damage",
        description=_VERIFY_DESCRIPTION,
        epilog=_VERIFY_EPILOG,
        formatter_class=formatter,
    )
    _add_uri(parser)
    parser.set_defaults(run=verify)


def add_prune(actions: Any, formatter: type[argparse.HelpFormatter]) -> None:
    """Add `prune` to the subparsers of `engram memory`."""
    parser = actions.add_parser(
        "prune",
        help="delete old generations of a snapshot",
        description=_PRUNE_DESCRIPTION,
        epilog=_PRUNE_EPILOG,
        formatter_class=formatter,
    )
    _add_uri(parser)
    parser.add_argument("--keep", metavar="N", type=int, required=True, help="how many whole generations stay")
    parser.set_defaults(run=prune)


def _add_uri(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--snapshot", metavar="URI", required=True, help="snapshot directory, or a URI of one")


def snapshot(args: argparse.Namespace) -> int:
    """Have the shards of a running memory write a generation, and print its size. Returns the exit code."""
    from memory_service import MemoryClient
    from memory_service.snapshots.upkeep import summary

    client = MemoryClient.connect(args.address)
    try:
        print(_line(summary(client.snapshot(args.snapshot, args.full))))
    finally:
        client.close()
    return 0


def verify(args: argparse.Namespace) -> int:
    """Print every generation and its damage. Returns the exit code, 1 if there is any damage."""
    from memory_service.snapshots.upkeep import verify

    reports = verify(args.snapshot)
    for report in reports:
        print(_line(report))
        for sentence in report.damage:
            print(f"  {sentence}")
    return int(any(report.damage for report in reports))


def prune(args: argparse.Namespace) -> int:
    """Delete old generations and print the deleted files. Returns the exit code."""
    from memory_service.snapshots.upkeep import prune

    deleted = prune(args.snapshot, args.keep)
    for path in deleted:
        print(path)
    print(f"{args.snapshot}: {len(deleted)} files deleted")
    return 0


def _line(report: GenerationReport) -> str:
    return (
        f"generation {report.generation}: {report.blocks:,} blocks, {report.bytes:,} bytes, of which new "
        f"{report.new_blocks:,} blocks, {report.new_bytes:,} bytes; {'DAMAGED' if report.damage else 'whole'}"
    )

"""What a running memory is made of, for people and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from memory_service.control import ControlClient
from memory_service.directory import each_shard
from memory_service.errors import MemoryServiceError, ShardUnavailable
from memory_service.placement import Placement, ShardAddress
from memory_service.shard import ShardStats
from memory_service.wire import HeldTable, ShardInfo


@dataclass(frozen=True)
class MemoryReport:
    """A memory's placement, and what each of its shards says. A shard that does not answer says nothing."""

    placement: Placement
    tables: Mapping[str, HeldTable]
    shards: Mapping[ShardAddress, tuple[ShardInfo, ShardStats] | None]

    @classmethod
    def of(cls, address: str) -> MemoryReport:
        """Ask the shard at host:port, and those that it names; ShardUnavailable if it does not answer."""
        with ControlClient(address) as control:
            info = control.describe()
        if info.placement is None:
            raise ShardUnavailable(f"{info.shard} at {address} serves nothing yet; try again once it is activated")
        replies = each_shard(info.placement.shards, _ask)
        return cls(info.placement, info.tables, dict(zip(info.placement.shards, replies, strict=True)))

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values; a shard that does not answer has only name and address."""
        return {
            "epoch": self.placement.epoch,
            "tables": [_table_json(held) for held in self.tables.values()],
            "shards": [asdict(address) | _shard_json(reply) for address, reply in self.shards.items()],
        }

    def to_text(self) -> str:
        """The report as lines of text."""
        report = self.to_json()
        shards, tables = _count(report["shards"], "shard"), _count(report["tables"], "table")
        head = f"epoch {report['epoch']}, {shards}, {tables}"
        details = [
            "{name}: {rows:,} rows of {row_bytes} bytes ({row_format}), {blocks:,} blocks of {block_rows:,} rows, "
            "fingerprint {fingerprint:.12}".format(**table)
            for table in report["tables"]
        ]
        return "\n".join([head, *details, *map(_shard_text, report["shards"])])


def _count(things: Sequence[Any], name: str) -> str:
    return f"{len(things)} {name}" + ("s" if len(things) != 1 else "")


def _ask(control: ControlClient) -> tuple[ShardInfo, ShardStats] | None:
    try:
        return control.describe(), control.stats()
    except MemoryServiceError:
        return None


def _table_json(held: HeldTable) -> dict[str, Any]:
    spec = held.spec
    return {
        "name": spec.name,
        "layer": spec.layer,
        "rows": spec.rows,
        "row_bytes": spec.row_bytes,
        "row_format": spec.row_format.value,
        "blocks": spec.blocks,
        "block_rows": spec.block_rows,
        "fingerprint": spec.fingerprint,
        "version": held.version,
    }


def _shard_json(reply: tuple[ShardInfo, ShardStats] | None) -> dict[str, Any]:
    if reply is None:
        return {}
    info, stats = reply
    held = info.tables.values()
    return {
        "incarnation": info.incarnation,
        "blocks": {table.spec.name: len(table.blocks) for table in held},
        "bytes": sum(table.spec.row_bytes * table.spec.block_length(b) for table in held for b in table.blocks),
        "served": {"lookups": stats.requests, "refused": stats.refused, "expired": stats.expired}
        | {"rows": stats.rows, "bytes": stats.bytes},
    }


def _shard_text(shard: Mapping[str, Any]) -> str:
    name = f"{shard['shard']} at {shard['address']}"
    if "served" not in shard:
        return f"{name}: does not answer"
    blocks = ", ".join(f"{count:,} of {table}" for table, count in shard["blocks"].items())
    served = shard["served"]
    return (
        f"{name}: blocks {blocks}; {shard['bytes'] / 2**20:,.1f} MiB; "
        f"served {served['lookups']:,} lookups, {served['rows']:,} rows"
    )

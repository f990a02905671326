"""A report of a running memory, its placement, tables, shards and their load, as text and as JSON."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from memory_service.control.client import ControlClient
from memory_service.control.each_shard import each_shard
from memory_service.errors import MemoryServiceError, ShardUnavailable
from memory_service.metrics.metrics import Distribution
from memory_service.placement.placement import UNASSIGNED, Placement, ShardAddress
from memory_service.protocol.messages import HeldTable, ShardInfo
from memory_service.protocol.reports import ShardStats

_SAMPLE_SECONDS = 0.5  # between the two readings of which a rate is made
_TABLE_HEADER = ("table", "rows", "row", "format", "blocks", "of rows", "replicas", "version", "fingerprint")
_SHARD_HEADER = (
    *("shard", "address", "node", "by", "epoch", "blocks", "MiB", "up", "streams"),
    *("lookups", "rows/s", "p50", "p99", "refused", "expired"),
)


@dataclass(frozen=True)
class ShardReport:
    """One shard's description and counters."""

    info: ShardInfo
    stats: ShardStats
    rows_per_s: float
    """Rows sent per second, at the moment."""


@dataclass(frozen=True)
class MemoryReport:
    """A memory's placement and tables, and a report of each shard; None for a shard that does not answer."""

    placement: Placement
    tables: Mapping[str, HeldTable]
    shards: Mapping[ShardAddress, ShardReport | None]

    @classmethod
    def of(cls, address: str) -> MemoryReport:
        """Ask the shard at HOST:PORT, and the shards of its placement.

        Raises:
            InvalidRequest: the address is not valid.
            ShardUnavailable: the shard cannot be reached, or has no placement yet.
        """
        with ControlClient(address) as control:
            info = control.describe()
        if info.placement is None:
            raise ShardUnavailable(f"{info.shard} at {address} serves nothing yet; try again once it is activated")
        replies = each_shard(info.placement.shards, _ask)
        return cls(info.placement, info.tables, dict(zip(info.placement.shards, replies, strict=True)))

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values; a shard that does not answer has only name and address."""
        return {
            "epoch": self.placement.epoch,
            "tables": [_table_json(held, self.placement) for held in self.tables.values()],
            "shards": [asdict(address) | _shard_json(reply) for address, reply in self.shards.items()],
        }

    def to_text(self) -> str:
        """Return the report as lines of text."""
        report = self.to_json()
        shards, tables = _count(report["shards"], "shard"), _count(report["tables"], "table")
        head = f"epoch {report['epoch']}, {shards}, {tables}"
        return "\n".join(
            [
                head,
                "",
                *_aligned([_TABLE_HEADER, *map(_table_cells, report["tables"])]),
                "",
                *_aligned([_SHARD_HEADER, *map(_shard_cells, report["shards"])]),
            ]
        )


def _ask(control: ControlClient) -> ShardReport | None:
    try:
        before, start = control.stats(), time.monotonic()
        time.sleep(_SAMPLE_SECONDS)
        stats, seconds = control.stats(), time.monotonic() - start
        return ShardReport(control.describe(), stats, max(0, stats.rows - before.rows) / seconds)
    except MemoryServiceError:
        return None


def _table_json(held: HeldTable, placement: Placement) -> dict[str, Any]:
    spec = held.spec
    replicas = (placement.assigned(spec.name) != UNASSIGNED).sum(axis=0)
    return {
        "name": spec.name,
        "layer": spec.layer,
        "rows": spec.rows,
        "row_bytes": spec.row_bytes,
        "row_format": spec.row_format.value,
        "blocks": spec.blocks,
        "block_rows": spec.block_rows,
        "replicas": {"least": int(replicas.min()), "most": int(replicas.max())},
        "fingerprint": spec.fingerprint,
        "version": held.version,
    }


def _shard_json(reply: ShardReport | None) -> dict[str, Any]:
    if reply is None:
        return {}
    info, stats, held = reply.info, reply.stats, reply.info.tables.values()
    return {
        "node": info.node,
        "incarnation": info.incarnation,
        "implementation": info.implementation,
        "started": stats.started,
        "epoch": info.placement.epoch if info.placement else None,
        "blocks": {table.spec.name: len(table.blocks) for table in held},
        "versions": {table.spec.name: table.version for table in held},
        "bytes": sum(table.spec.row_bytes * table.spec.block_length(b) for table in held for b in table.blocks),
        "streams": stats.streams,
        "rows_per_s": round(reply.rows_per_s, 1),
        "served": {"lookups": stats.requests, "refused": stats.refused, "expired": stats.expired}
        | {"rows": stats.rows, "bytes": stats.bytes},
        "refused_by": dict(stats.refused_by),
        "latency": _latency_json(stats.latency),
        "stages": {stage: _latency_json(spent) for stage, spent in stats.stages.items()},
    }


def _latency_json(spent: Distribution) -> dict[str, Any]:
    return {"count": spent.count, "seconds": spent.seconds} | {
        f"p{percent}_s": spent.quantile(percent / 100) for percent in (50, 99)
    }


def _table_cells(table: Mapping[str, Any]) -> tuple[str, ...]:
    least, most = table["replicas"]["least"], table["replicas"]["most"]
    return (
        table["name"],
        f"{table['rows']:,}",
        f"{table['row_bytes']} B",
        table["row_format"],
        f"{table['blocks']:,}",
        f"{table['block_rows']:,}",
        f"{most}" if least == most else f"{least}-{most}",
        f"{table['version']}",
        table["fingerprint"][:12],
    )


def _shard_cells(shard: Mapping[str, Any]) -> tuple[str, ...]:
    name = (shard["shard"], shard["address"])
    if "served" not in shard:
        return (*name, "does not answer")
    served, latency = shard["served"], shard["latency"]
    return (
        *name,
        shard["node"][:12] or "-",
        shard["implementation"] or "-",
        f"{shard['epoch']}",
        f"{sum(shard['blocks'].values()):,}",
        f"{shard['bytes'] / 2**20:,.1f}",
        _duration_text(time.time() - shard["started"]),
        f"{shard['streams']}",
        f"{served['lookups']:,}",
        f"{shard['rows_per_s']:,.0f}",
        _latency_text(latency["p50_s"]),
        _latency_text(latency["p99_s"]),
        f"{served['refused']:,}",
        f"{served['expired']:,}",
    )


def _latency_text(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.2f} ms"


def _duration_text(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def _count(things: Sequence[Any], name: str) -> str:
    return f"{len(things)} {name}" + ("s" if len(things) != 1 else "")


def _aligned(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    """Columns two spaces apart; in a row with fewer cells, the last cell takes the room that it needs."""
    full = [row for row in rows if len(row) == len(rows[0])]
    widths = [max(len(row[i]) for row in full) for i in range(len(rows[0]))]
    for column in (0, 1):  # names and addresses of all rows
        widths[column] = max(len(row[column]) for row in rows)
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip()

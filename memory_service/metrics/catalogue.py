"""Every metric of the memory service, as Prometheus and Ray show them of shards and clients."""

from __future__ import annotations

from memory_service.metrics.metrics import Kind, Metric

SHARD_LOOKUPS = Metric(
    "engram_memory_shard_lookups_total", Kind.COUNTER, "Requests for rows answered with rows.", ("table",)
)
SHARD_ROWS = Metric("engram_memory_shard_rows_total", Kind.COUNTER, "Rows sent.", ("table",))
SHARD_BYTES = Metric("engram_memory_shard_bytes_total", Kind.COUNTER, "Bytes of the rows sent.", ("table",))
SHARD_REFUSED = Metric(
    "engram_memory_shard_refused_total", Kind.COUNTER, "Requests answered with an error, by its status.", ("reason",)
)
SHARD_EXPIRED = Metric(
    "engram_memory_shard_expired_total",
    Kind.COUNTER,
    "Requests dropped, read after their deadline.",
)
SHARD_LOOKUP_SECONDS = Metric(
    "engram_memory_shard_lookup_seconds", Kind.HISTOGRAM, "Time from reading a request to having written its reply."
)
SHARD_STAGE_SECONDS = Metric(
    "engram_memory_shard_stage_seconds",
    Kind.HISTOGRAM,
    "Time by stage of a request: queue (before it was read), locate, gather, write.",
    ("stage",),
)
SHARD_STREAMS = Metric("engram_memory_shard_streams", Kind.GAUGE, "Streams of rows open now.")
SHARD_START = Metric(
    "engram_memory_shard_start_time_seconds", Kind.GAUGE, "Unix time at which this incarnation started."
)
SHARD_EPOCH = Metric("engram_memory_shard_epoch", Kind.GAUGE, "Epoch of the active placement; 0 before the first.")
SHARD_BLOCKS = Metric("engram_memory_shard_blocks", Kind.GAUGE, "Blocks held.", ("table",))
SHARD_HELD_BYTES = Metric("engram_memory_shard_held_bytes", Kind.GAUGE, "Bytes of the blocks held.", ("table",))
SHARD_VERSION = Metric(
    "engram_memory_shard_table_version", Kind.GAUGE, "Committed updates that the rows contain.", ("table",)
)

CLIENT_LOOKUPS = Metric("engram_memory_client_lookups_total", Kind.COUNTER, "Lookups answered with rows.", ("table",))
CLIENT_FAILED = Metric("engram_memory_client_failed_total", Kind.COUNTER, "Lookups answered with an error.")
CLIENT_ROWS = Metric("engram_memory_client_rows_total", Kind.COUNTER, "Rows requested by lookups.", ("table",))
CLIENT_UNIQUE_ROWS = Metric(
    "engram_memory_client_unique_rows_total",
    Kind.COUNTER,
    "Rows requested, repeats left out.",
    ("table",),
)
CLIENT_BYTES = Metric("engram_memory_client_bytes_total", Kind.COUNTER, "Bytes of the unique rows.", ("table",))
CLIENT_SHARD_ROWS = Metric(
    "engram_memory_client_shard_rows_total", Kind.COUNTER, "Rows that each shard delivered.", ("shard",)
)
CLIENT_EVENTS = {
    "hedges": Metric(
        "engram_memory_client_hedges_total",
        Kind.COUNTER,
        "Requests sent to a second replica: one was slow.",
    ),
    "failovers": Metric(
        "engram_memory_client_failovers_total",
        Kind.COUNTER,
        "Requests sent to another replica: one failed.",
    ),
    "retries": Metric(
        "engram_memory_client_retries_total", Kind.COUNTER, "Requests sent again after the placement was refreshed."
    ),
    "cache_hits": Metric("engram_memory_client_cache_hits_total", Kind.COUNTER, "Unique rows found in the cache."),
    "cache_misses": Metric(
        "engram_memory_client_cache_misses_total", Kind.COUNTER, "Unique rows missing from the cache."
    ),
}
"""Counters of events, by the name that LookupCounters.count takes."""
CLIENT_LOOKUP_SECONDS = Metric(
    "engram_memory_client_lookup_seconds", Kind.HISTOGRAM, "Time from the call of a lookup to all rows being in place."
)
CLIENT_STAGE_SECONDS = Metric(
    "engram_memory_client_stage_seconds",
    Kind.HISTOGRAM,
    "Time by stage: dedup, cache, send of a lookup; wait for a shard, or map to read its memory; gather of the rows.",
    ("stage",),
)
CLIENT_EPOCH = Metric("engram_memory_client_epoch", Kind.GAUGE, "Epoch of the placement under which lookups are sent.")

"""What a run reports to its user."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from cluster.batch.job import JobReport
from reasoning.engine.config import EngineStats


def engine_line(stats: EngineStats) -> str:
    """Describe the context that the engines serve, and the size of their caches."""
    short = f" of the model's {stats.model_context:,}" if stats.context < stats.model_context else ""
    cache = f"{stats.cache_tokens:,} tokens in {stats.cache_bytes / 2**20:,.1f} MiB"
    return f"context {stats.context:,} tokens{short}, cache {cache} at each engine"


def job_lines(report: JobReport, stats: Sequence[EngineStats]) -> list[str]:
    """Describe in a few lines what was generated, how fast, and what the memory contributed."""
    rate = report.output_tokens / report.seconds if report.seconds else 0.0
    head = (
        f"{report.lines:,} lines ({report.errors:,} with errors), {report.output_tokens:,} tokens "
        f"in {report.seconds:.1f} s: {rate:,.1f} tok/s"
    )
    return [head, *memory_lines(stats)]


def memory_lines(stats: Sequence[EngineStats]) -> list[str]:
    """Describe rows fetched from each shard and the mean lookup time over all workers; empty without a memory."""
    memories = [engine.memory for engine in stats if engine.memory is not None]
    lookups = sum(memory.lookups for memory in memories)
    if not lookups:
        return []
    shards: Counter[str] = Counter()
    for memory in memories:
        shards.update(memory.shard_rows)
    milliseconds = 1e3 * sum(memory.lookup_seconds for memory in memories) / lookups
    return [
        "rows fetched: " + ", ".join(f"{shard} {rows:,}" for shard, rows in sorted(shards.items())),
        f"mean lookup: {milliseconds:.2f} ms over {lookups:,} lookups",
    ]

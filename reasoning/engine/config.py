"""Configuration and counters of an engine."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from memory_service import ClientConfig, MemoryStats
from reasoning.drafts.length import DraftPolicy

_WHOLE = ("max_batch", "max_context", "cache_tokens", "prefill_tokens", "max_queue")
_OPTIONAL = ("max_context", "cache_tokens", "cache_share")


@dataclass(frozen=True)
class EngineConfig:
    """Configuration of an engine: its limits, where it computes, and how it looks memory rows up."""

    max_batch: int = 16
    """Sequences that run together. Each sample of a request is a sequence."""
    max_context: int | None = None
    """Most tokens of a prompt and its completion together. None: the positions of the model, or the size of the cache
    where memory is short."""
    cache_tokens: int | None = None
    """Tokens that the cache holds for all sequences, in whole pages of 64. None: room for a sequence of `max_context`
    tokens and 4,096 tokens for each further sequence of `max_batch`, or as much as `cache_share` allows."""
    cache_share: float | None = None
    """Share of the free memory that the cache may take, up to 1. None: 0.8 of the memory of a GPU, or 0.5 of the
    host's, divided among the workers of a node."""
    prefill_tokens: int = 2048
    """Most prompt tokens that are computed in a step."""
    prefix_cache: bool = True
    """Keep the pages of finished sequences while there is room, for prompts with the same beginning."""
    max_queue: int = 1024
    """Sequences that may wait in the queue; further requests are refused."""
    overlap: bool = True
    """Compute while rows travel. Without overlap, a step begins once all of its rows have arrived."""
    cohorts: int | None = None
    """Number of groups in which decoding sequences take turns, 1 or 2. None: decided by measurement."""
    drafts: str = "auto"
    """Source of draft tokens, of which the model checks several in one step: "mtp" (the checkpoint's multi-token
    prediction), "ngram" (tokens that followed the same n-gram before), "auto" (the first of these that is there), or
    "none"."""
    draft_policy: DraftPolicy = field(default_factory=DraftPolicy)
    """How many tokens are drafted in a step."""
    device: str = "auto"
    """Device of the model: "cpu", "cuda", or "auto" for a GPU if available."""
    dtype: str = "auto"
    """Precision of weights and cache: "bf16", "fp32", or "auto" for bf16 on a GPU and fp32 on a CPU."""
    lookup_timeout_s: float = 10.0
    """Deadline of a row lookup in seconds, after which the requests that need the rows fail."""
    client: ClientConfig = field(default_factory=ClientConfig)
    """Client of a memory on the network."""

    def __post_init__(self) -> None:
        for name in (*_WHOLE, "cache_share", "lookup_timeout_s"):
            value = getattr(self, name)
            if not (value is None and name in _OPTIONAL):
                _check_positive(name, value, whole=name in _WHOLE)
        if self.cache_share is not None and self.cache_share > 1:
            raise ValueError(f"cache_share: {self.cache_share!r} is more than all memory; use a number up to 1")
        if self.cohorts not in (None, 1, 2):
            raise ValueError(f"cohorts: {self.cohorts!r} is not possible; use 1, 2 or None to decide by measurement")
        if self.cohorts == 2 and not self.overlap:
            raise ValueError("cohorts: two take turns while rows travel; without `overlap` use 1 or None")


def _check_positive(name: str, value: Any, whole: bool) -> None:
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        raise ValueError(f"{name}: {value!r} is not a {'whole ' if whole else ''}number")
    if not 0 < value < math.inf:
        raise ValueError(f"{name}: {value!r} is not above zero" + ("" if value <= 0 else " and finite"))


@dataclass(frozen=True)
class EngineStats:
    """Counters since the engine was created, and its current state."""

    context: int
    """Most tokens of a prompt and its completion together."""
    model_context: int
    """Positions of the model. `context` is smaller if it was configured so, or if memory is short."""
    token_bytes: int | None
    """Most bytes of UTF-8 text that a token stands for; None without a bound or without a tokenizer."""
    cache_tokens: int
    """Size of the cache in tokens."""
    cache_bytes: int
    """Size of the cache in bytes."""
    steps: int
    """Steps that ran."""
    prompt_tokens: int
    """Prompt tokens of the requests that have started."""
    reused_tokens: int
    """Prompt tokens found in the cache instead of computed, those of resumed sequences included."""
    output_tokens: int
    """Tokens generated."""
    drafted_tokens: int
    """Draft tokens that the model checked."""
    accepted_tokens: int
    """Draft tokens that were right: output tokens without a step of their own."""
    busy_s: float
    """Seconds spent in steps."""
    waited_s: float
    """Seconds of `busy_s` spent waiting for memory rows."""
    preemptions: int
    """Times that a running sequence was preempted because pages ran out."""
    running: int
    """Sequences that are running."""
    waiting: int
    """Sequences that are waiting in the queue."""
    free_pages: int
    """Pages of the cache that no sequence holds."""
    cohorts: int
    """Number of groups in which decoding sequences take turns."""
    round_trip_s: float
    """Recent median time from a lookup to the arrival of the first layer's rows, of steps that only decoded."""
    hidden_s: float
    """Recent median time of the layers before the first Engram layer, of steps that only decoded."""
    memory: MemoryStats | None
    """Counters of the memory; None for a model without Engram layers."""

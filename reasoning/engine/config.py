"""How an engine is set up, and what it counts."""

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
    """How much one engine takes on at a time, where it computes, and how it asks for memory rows."""

    max_batch: int = 16
    """Sequences that run together; each of a request's samples is one."""
    max_context: int | None = None
    """Tokens that a prompt and its completion may have together. None: as many as the model has positions, or as the
    cache holds where memory is short."""
    cache_tokens: int | None = None
    """Tokens that the cache holds for all sequences, in whole pages of 64. None: one sequence of `max_context` and
    4,096 tokens for each further one of `max_batch`, or as many as `cache_share` allows."""
    cache_share: float | None = None
    """Share of the free memory that the cache may take, up to 1. None: 0.8 of a GPU's; 0.5 of the host's, of which
    each of several workers on one node gets its part."""
    prefill_tokens: int = 2048
    """Prompt tokens that enter in one step."""
    prefix_cache: bool = True
    """Keep the pages of finished sequences while there is room, for prompts that begin alike."""
    max_queue: int = 1024
    """Sequences that may wait for their turn; a request beyond them is refused."""
    overlap: bool = True
    """Compute while rows travel. Without it a step begins once all of its rows are there."""
    cohorts: int | None = None
    """Groups that decoding sequences take turns in, 1 or 2. None: decided by measurement."""
    drafts: str = "auto"
    """Source of draft tokens, of which the model checks several in one step: "mtp" (the checkpoint's multi-token
    prediction), "ngram" (what followed the same tokens before), "auto" (the first of these there is), or "none"."""
    draft_policy: DraftPolicy = field(default_factory=DraftPolicy)
    """How many tokens are drafted."""
    device: str = "auto"
    """Where the model runs: "cpu", "cuda", or "auto" for a GPU if there is one."""
    dtype: str = "auto"
    """Precision of weights and cache: "bf16", "fp32", or "auto" for bf16 on a GPU and fp32 on a CPU."""
    lookup_timeout_s: float = 10.0
    """Seconds that a step waits for memory rows before its requests fail."""
    client: ClientConfig = field(default_factory=ClientConfig)
    """How a memory on the network is asked for rows."""

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
    """Counters since the engine was made, and what it holds at the moment."""

    context: int
    """Tokens that a prompt and its completion may have together."""
    model_context: int
    """Positions of the model: `context` is less where it was configured so, or where memory is short."""
    token_bytes: int | None
    """Bytes of UTF-8 text that one token stands for at most; None if there is no bound, or no tokenizer."""
    cache_tokens: int
    """Tokens that the cache has room for."""
    cache_bytes: int
    """Bytes of the cache."""
    steps: int
    prompt_tokens: int
    """Prompt tokens of the requests that have begun."""
    reused_tokens: int
    """Prompt tokens found in the cache instead of computed, those of resumed sequences included."""
    output_tokens: int
    drafted_tokens: int
    """Draft tokens that the model checked."""
    accepted_tokens: int
    """Draft tokens that were right: output tokens without a step of their own."""
    busy_s: float
    """Seconds spent in steps."""
    waited_s: float
    """Seconds of `busy_s` spent waiting for memory rows."""
    preemptions: int
    """Times that a running sequence had to yield its pages."""
    running: int
    """Sequences that run."""
    waiting: int
    """Sequences that wait for their turn."""
    free_pages: int
    """Pages of the cache that no sequence holds."""
    cohorts: int
    """Groups that decoding sequences take turns in."""
    round_trip_s: float
    """Recent median time from asking for rows to having those of the first layer, of steps that only decoded."""
    hidden_s: float
    """Recent median time that the layers before the first Engram layer take in such a step."""
    memory: MemoryStats | None
    """Counters of the memory; None for a model without Engram layers."""

"""How an engine is set up, and what it counts."""

from __future__ import annotations

from dataclasses import dataclass, field

from memory_service import ClientConfig, MemoryStats
from reasoning.drafts.length import DraftPolicy
from reasoning.model.batch import PAGE_TOKENS


@dataclass(frozen=True)
class EngineConfig:
    """How much one engine takes on at a time."""

    max_batch: int = 16
    """Sequences that run together."""
    max_context: int = 4096
    """Tokens of a prompt and its completion together; the model's own limit applies as well."""
    prefill_tokens: int = 2048
    """Prompt tokens that enter in one step."""
    cache_tokens: int | None = None
    """Tokens that the cache holds, in whole pages of 64; None: as many as `max_batch` sequences of `max_context`."""
    prefix_cache: bool = True
    """Keep the pages of finished sequences while there is room, for prompts that begin alike."""
    max_queue: int = 1024
    """Sequences that may wait for their turn; a request beyond them is refused."""
    overlap: bool = True
    """Compute while rows travel. False waits for all rows of a step before it begins."""
    cohorts: int | None = None
    """Groups that decoding sequences take turns in, 1 or 2; None decides by measurement."""
    drafts: str = "auto"
    """Who guesses tokens ahead, for the model to check several in one step: "mtp" (the checkpoint's multi-token
    prediction), "ngram" (what followed the same tokens before), "auto" (the first of these there is), or "none"."""
    draft_policy: DraftPolicy = field(default_factory=DraftPolicy)
    """How many tokens are guessed."""
    device: str = "auto"
    """Where the model runs: "cpu", "cuda", or "auto" for a GPU if there is one."""
    dtype: str = "auto"
    """Precision of weights and cache: "bf16", "fp32", or "auto" for bf16 on a GPU and fp32 on a CPU."""
    lookup_timeout_s: float = 10.0
    """How long a step waits for memory rows before its requests fail."""
    client: ClientConfig = field(default_factory=ClientConfig)
    """How rows are asked for where the memory is on the network."""

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_context", "prefill_tokens", "max_queue", "lookup_timeout_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: {getattr(self, name)!r} is not above zero")
        if self.cache_tokens is not None and self.cache_tokens < PAGE_TOKENS:
            raise ValueError(f"cache_tokens: {self.cache_tokens} is less than a page; use {PAGE_TOKENS} or more")
        if self.cohorts not in (None, 1, 2):
            raise ValueError(f"cohorts: {self.cohorts!r} is not possible; use 1, 2 or None to decide by measurement")
        if self.cohorts == 2 and not self.overlap:
            raise ValueError("cohorts: two take turns while rows travel; with overlap=False use 1 or None")


@dataclass(frozen=True)
class EngineStats:
    """Counters since the engine was made, and what it holds at the moment."""

    steps: int
    prompt_tokens: int
    """Of the requests that were begun."""
    reused_tokens: int
    """Prompt tokens found in the cache instead of computed, those of resumed sequences included."""
    output_tokens: int
    drafted_tokens: int
    """Guesses that the model checked."""
    accepted_tokens: int
    """Guesses that were right: output tokens without a step of their own."""
    busy_s: float
    """Time spent in steps."""
    waited_s: float
    """Part of it spent waiting for memory rows."""
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
    """None for a model without Engram layers."""

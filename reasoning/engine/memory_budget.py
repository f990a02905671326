"""The context that an engine serves and the size of its cache, from the memory that is free."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from reasoning.engine.config import EngineConfig
from reasoning.engine.free_memory import free_bytes
from reasoning.model.batch import PAGE_TOKENS, pages_for

_log = logging.getLogger(__name__)

GPU_SHARE, HOST_SHARE = 0.8, 0.5
"""Default shares of the free memory that a cache may take. Host memory is shared with other processes."""
_ORDINARY_TOKENS = 4096
"""Cache tokens planned for each sequence besides the longest. All sequences share the pages, and the sequence that
arrived last is preempted when they run out."""


@dataclass(frozen=True)
class Room:
    """Memory for a cache."""

    free_bytes: int
    """Free bytes."""
    token_bytes: int
    """Bytes of cache for a token."""
    gpu: bool = False
    """Whether it is the memory of a GPU."""

    @classmethod
    def on(cls, device: torch.device, token_bytes: int) -> Room:
        """Measure the free memory of a device."""
        return cls(free_bytes(device), token_bytes, device.type == "cuda")

    def pages(self, share: float | None) -> int:
        """Return the number of pages that fit into a share of it; None is the default share."""
        return int(self.free_bytes * (share or self._default_share)) // (PAGE_TOKENS * self.token_bytes)

    def describe(self, share: float | None) -> str:
        """Describe how much fits, as in "4,096 tokens (12.0 MiB: 0.5 of the 24.0 MiB that are free)"."""
        share = share or self._default_share
        taken, free = (f"{size / 2**20:,.1f} MiB" for size in (self.free_bytes * share, self.free_bytes))
        return f"{self.pages(share) * PAGE_TOKENS:,} tokens ({taken}: {share:g} of the {free} that are free)"

    @property
    def _default_share(self) -> float:
        return GPU_SHARE if self.gpu else HOST_SHARE


@dataclass(frozen=True)
class CacheBudget:
    """Context and cache size of an engine."""

    context: int
    """Most tokens of a prompt and its completion together."""
    pages: int
    """Pages of PAGE_TOKENS tokens."""

    @property
    def tokens(self) -> int:
        """Size of the cache in tokens."""
        return self.pages * PAGE_TOKENS


def cache_budget(config: EngineConfig, model_context: int, room: Room) -> CacheBudget:
    """Choose the context and the size of the cache.

    By default, the context is the model's, and the cache has room for a sequence of that length and for 4,096 tokens of
    each further sequence that may run. Both are bounded by the share of the memory that the cache may take.

    Args:
        config: configuration of the engine.
        model_context: positions of the model.
        room: memory of the device.

    Raises:
        ValueError: `max_context` or `cache_tokens` does not fit, or there is no room for a single page.
    """
    context = model_context if config.max_context is None else config.max_context
    if context > model_context:
        raise ValueError(f"max_context: {context:,} is more than the {model_context:,} positions of the model")
    pages = _cache_pages(config, context, room)
    if context <= pages * PAGE_TOKENS:
        return CacheBudget(context, pages)
    if config.max_context is None:
        tokens = pages * PAGE_TOKENS
        limit = "cache_tokens" if config.cache_tokens is not None else f"memory for {room.describe(config.cache_share)}"
        _log.warning("the context is %s tokens of the model's %s, bounded by %s", f"{tokens:,}", f"{context:,}", limit)
        return CacheBudget(tokens, pages)
    if config.cache_tokens is not None:
        raise ValueError(f"max_context: {context:,} is more than `cache_tokens`, {config.cache_tokens:,}; use less")
    raise ValueError(
        f"max_context: {context:,} tokens do not fit into a cache of {room.describe(config.cache_share)}; "
        "use fewer, or a larger `cache_share`"
    )


def _cache_pages(config: EngineConfig, context: int, room: Room) -> int:
    most = room.pages(config.cache_share)
    if not most:
        raise ValueError(
            f"cache_share: the cache has room for {room.describe(config.cache_share)}, which is less than a page of "
            f"{PAGE_TOKENS}; free memory, or use a larger share"
        )
    if config.cache_tokens is None:
        further = (config.max_batch - 1) * pages_for(min(context, _ORDINARY_TOKENS))
        return min(pages_for(context) + further, most)
    if pages_for(config.cache_tokens) > most:
        raise ValueError(
            f"cache_tokens: {config.cache_tokens:,} are more than {room.describe(config.cache_share)}; "
            "use fewer, or a larger `cache_share`"
        )
    return pages_for(config.cache_tokens)

"""A reasoning worker: an engine, and the patience to carry on when a memory shard dies under it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from memory_service.errors import DeadlineExceeded, MemoryServiceError, ShardUnavailable
from reasoning.engine import Completion, Engine, EngineStats, Request, RequestFailure

Locate = Callable[[], str]
"""Waits until the memory serves, and returns the address of one of its shards."""

_ATTEMPTS = 4

_log = logging.getLogger(__name__)


class ReasoningWorker:
    """Generates for chunks of requests; becomes a Ray actor by `ray.remote(ReasoningWorker)`."""

    def __init__(self, model_dir: Path, locate: Locate | None = None, threads: int = 1) -> None:
        """Load the model. `locate` finds its memory; None reads the tables of `model_dir` into this process."""
        torch.set_num_threads(threads)
        self._model_dir, self._locate = model_dir, locate
        self._engine: Engine | None = None
        try:
            self._engine = self._load()
        except (ValueError, OSError, MemoryServiceError) as error:
            # Raised here it would end the actor, its reason buried in a log: the first call raises it instead.
            self._failure = error

    def ready(self) -> None:
        """Raise what kept the model from loading."""
        self._loaded()

    def generate(self, requests: Sequence[Request]) -> list[Completion | RequestFailure]:
        """One outcome for each request, in any order.

        Generates a chunk anew when the memory was lost on the way; the outcome is the same, since it depends on the
        requests alone.
        """
        engine = self._loaded()
        for attempt in range(1, _ATTEMPTS):
            try:
                return list(engine.generate(requests))
            except (ShardUnavailable, DeadlineExceeded) as error:
                _log.warning("memory lost, attempt %d: %s", attempt, error)
                engine = self._engine = self._load()
        return list(engine.generate(requests))

    def stats(self) -> EngineStats:
        """Counters of the engine."""
        return self._loaded().stats()

    def _load(self) -> Engine:
        return Engine.from_pretrained(self._model_dir, memory=self._locate() if self._locate else None)

    def _loaded(self) -> Engine:
        if self._engine is None:
            raise self._failure
        return self._engine

"""A reasoning worker: an engine that reconnects and retries when its memory is lost."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from memory_service.client.client import MemoryClient
from memory_service.errors import ShardUnavailable
from memory_service.metrics.metrics import Sample
from reasoning.engine import Engine
from reasoning.engine.config import EngineConfig, EngineStats
from reasoning.engine.trace import Trace
from reasoning.request import Request, RequestFailure, Result

Locate = Callable[[], str]
"""Waits until the memory serves, and returns the address of any of its shards."""

_ATTEMPTS = 5
_PAUSE_SECONDS = 0.5

_log = logging.getLogger(__name__)


class ReasoningWorker:
    """Generates for chunks of requests, in this process or in an actor."""

    def __init__(
        self,
        model_dir: Path,
        locate: Locate | None = None,
        config: EngineConfig | None = None,
        threads: int | None = None,
        trace: Trace | None = None,
    ) -> None:
        """Describe a worker; its model is loaded by the first call, so that an error is raised to the caller.

        Args:
            model_dir: a model directory.
            locate: finds the memory; None loads the tables of `model_dir` into this process.
            config: configuration of the engine.
            threads: number of threads for torch; None keeps its default.
            trace: records every step of the engine.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        self._model_dir, self._locate, self._config, self._trace = model_dir, locate, config, trace
        self._incarnation = uuid.uuid4().hex
        self._engine: Engine | None = None
        self._past: list[EngineStats] = []

    def ready(self) -> str:
        """Load the model, and return the name of this process, which is different after every restart.

        Raises:
            ValueError: a file of the model is missing or damaged.
            OSError: a file cannot be read.
            MemoryServiceError: the memory cannot be loaded or reached, or is not the model's.
        """
        self._loaded()
        return self._incarnation

    def generate(self, requests: Sequence[Request]) -> list[Result]:
        """Return a result for each request, in any order.

        Requests that fail because a shard was lost are retried, with the same result, once the memory is back.

        Raises:
            MemoryServiceError: the memory does not come back.
        """
        results, todo = self._try(requests)
        for _ in range(_ATTEMPTS - 1):
            if not todo:
                return results
            self._reconnect()
            done, todo = self._try(todo)
            results += done
        if todo:
            raise ShardUnavailable(self._lost)
        return results

    def stats(self) -> list[EngineStats]:
        """Return the engine's counters, once for each memory it was connected to; `memory` counts that memory alone."""
        return [*self._past, self._loaded().stats()]

    def collect(self) -> Iterable[Sample]:
        """Return the metrics of the memory in use."""
        memory = self._engine.memory if self._engine else None
        return memory.collect() if memory else ()

    def _try(self, requests: Sequence[Request]) -> tuple[list[Result], list[Request]]:
        """Return results, and the requests to retry."""
        results = list(self._loaded().generate(requests))
        lost = {result.id: result for result in results if isinstance(result, RequestFailure) and result.retryable}
        for result in lost.values():
            self._lost = result.message
        done = [result for result in results if result.id not in lost]
        return done, [request for request in requests if request.id in lost]

    def _reconnect(self) -> None:
        """Reconnect the engine to the memory; keep the old connection if no memory can be found."""
        assert self._locate is not None, "a memory in this process cannot be lost"
        _log.warning("memory lost: %s", self._lost)
        time.sleep(_PAUSE_SECONDS)
        engine = self._loaded()
        try:
            memory = MemoryClient.connect(self._locate(), config=engine.config.client)
        except ShardUnavailable as error:
            self._lost = str(error)
            return
        self._past.append(engine.stats())
        engine.reconnect(memory)

    def _loaded(self) -> Engine:
        if self._engine is None:
            memory = self._locate() if self._locate else None
            self._engine = Engine.from_pretrained(self._model_dir, memory, self._config, self._trace)
        return self._engine

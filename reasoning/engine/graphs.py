"""CUDA graphs for decoding: a step of one token a sequence is replayed in segments, between the waits for rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from reasoning.architectures.base import Backbone, Cache, RowSource
from reasoning.model.batch import Batch
from reasoning.model.decode_batch import DecodeBatch
from reasoning.model.devices import to_device

Replay = Callable[[], None]
"""Repeats on the device what was recorded, on the current contents of the recorded tensors."""


class Recorder(Protocol):
    """Records the device's work instead of running it. One recording at a time."""

    def begin(self) -> None:
        """Start a recording."""

    def end(self) -> Replay:
        """End the recording and return its replay."""


class CudaRecorder:
    """Records CUDA graphs. Their allocations share one pool, because they never run at the same time."""

    def __init__(self, device: torch.device):
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)
        self._open: tuple[torch.cuda.CUDAGraph, torch.cuda.graph] | None = None

    def begin(self) -> None:
        """Record the work of this thread; other threads keep copying rows on their own streams."""
        graph = torch.cuda.CUDAGraph()
        context = torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local")
        context.__enter__()
        self._open = graph, context

    def end(self) -> Replay:
        """Return the graph's replay, which runs on the stream that is current when it is called."""
        assert self._open is not None, "no recording was started"
        (graph, context), self._open = self._open, None
        context.__exit__(None, None, None)
        return graph.replay


class DecodeGraphs:
    """Runs a model: decode steps by graphs, one set for each power of two up to the largest batch, others directly.

    A graph reads tokens, pages and lengths from tensors that stay in place, and takes contexts of any length. Steps are
    padded to a recorded size with sequences that write to a page which no real sequence holds.
    """

    def __init__(self, model: Backbone, cache: Cache, max_batch: int, max_pages: int, recorder: Recorder):
        """Serve up to `max_batch` sequences of `max_pages` pages each; the last page of `cache` is for padding."""
        self._model, self._cache, self._recorder = model, cache, recorder
        self._max_batch, self._max_pages = max_batch, max_pages
        self._steps: dict[int, _DecodeStep] = {}

    @classmethod
    def where_possible(cls, model: Backbone, cache: Cache, max_batch: int, max_pages: int) -> DecodeGraphs | None:
        """Return graphs for a model that can be recorded where it is; None for others."""
        return cls(model, cache, max_batch, max_pages, CudaRecorder(cache.device)) if model.decodes_by_graphs else None

    def __call__(self, batch: Batch, rows: RowSource | None, cache: Cache) -> Tensor:
        """Do what the model does for the same arguments; the result is valid until the next call."""
        assert cache is self._cache, "graphs read and write the cache that they were recorded with"
        size = self._size(batch)
        if size is None:
            return self._model(batch, rows, cache)
        if size not in self._steps:
            self._steps[size] = _DecodeStep(self._model, cache, size, self._max_pages)
        return self._steps[size].run(batch, rows, self._recorder)

    def _size(self, batch: Batch) -> int | None:
        """Return the number of sequences to pad a batch to; None if it is no plain decode step."""
        count = len(batch.lengths)
        if batch.kept is not None or max(batch.lengths) > 1 or count > self._max_batch:
            return None
        return min(1 << (count - 1).bit_length(), self._max_batch)


class _DecodeStep:
    """Decode steps with one number of sequences: the first runs directly, the second is recorded, others are replayed.

    The first run compiles and tunes kernels for these sizes, which cannot be done while recording.
    """

    def __init__(self, model: Backbone, cache: Cache, size: int, max_pages: int):
        self._model, self._cache, self._size, self._max_pages = model, cache, size, max_pages
        self._scratch = cache.pages - 1
        self._input = torch.zeros(size * (2 + max_pages), dtype=torch.int64, device=cache.device)
        tokens, contexts, pages = self._input.split((size, size, size * max_pages))
        self._tensors = tokens, contexts, pages.view(size, max_pages)
        self._rows = _places_for_rows(model, cache, size)
        self._ran = False
        self._segments: list[tuple[int | None, Replay]] = []
        self._hidden = torch.empty(0, device=cache.device)

    def run(self, batch: Batch, rows: RowSource | None, recorder: Recorder) -> Tensor:
        """Return final hidden states [B, hidden]."""
        self._fill(batch)
        fetch = partial(self._fetch, rows, len(batch.lengths))
        if not self._ran:
            hidden = self._model(self._batch(), fetch, self._cache)
            self._ran = True
            return hidden[: len(batch.lengths)]
        if not self._segments:
            self._record(recorder)
        for layer, replay in self._segments:
            if layer is not None:
                fetch(layer)
            replay()
        return self._hidden[: len(batch.lengths)]

    def _batch(self) -> DecodeBatch:
        return DecodeBatch.of(*self._tensors)

    def _fill(self, batch: Batch) -> None:
        """Copy a batch to where graphs read it, in one transfer."""
        count, size = len(batch.lengths), self._size
        host = np.zeros(size * (2 + self._max_pages), np.int64)
        host[size : size + count] = batch.starts
        host[size : 2 * size] += 1
        pages = host[2 * size :].reshape(size, -1)
        pages[count:, 0] = self._scratch
        for row, held in zip(pages, batch.pages, strict=False):
            row[: len(held)] = held
        self._input.copy_(to_device(torch.from_numpy(host), self._input.device))
        self._tensors[0][:count] = batch.token_ids

    def _fetch(self, rows: RowSource | None, count: int, layer: int) -> Tensor:
        """Wait for a layer's rows and copy them to where graphs read them."""
        assert rows is not None, "a model with a memory fetches rows"
        self._rows[layer][:count] = rows(layer)
        return self._rows[layer]

    def _record(self, recorder: Recorder) -> None:
        """Record the model in segments, cut where it requests rows."""
        segments: list[tuple[int | None, Replay]] = []
        begun_with: int | None = None

        def cut(layer: int) -> Tensor:
            nonlocal begun_with
            segments.append((begun_with, recorder.end()))
            begun_with = layer
            recorder.begin()
            return self._rows[layer]

        recorder.begin()
        self._hidden = self._model(self._batch(), cut, self._cache)
        segments.append((begun_with, recorder.end()))
        self._segments = segments


def _places_for_rows(model: Backbone, cache: Cache, sequences: int) -> dict[int, Tensor]:
    """Return for each Engram layer a tensor that takes the rows of a step, [sequences, C * D]."""
    engram = model.config.engram
    layers, width = (engram.layer_ids, engram.width) if engram is not None else ((), 0)
    return {layer: torch.zeros(sequences, width, device=cache.device, dtype=cache.dtype) for layer in layers}

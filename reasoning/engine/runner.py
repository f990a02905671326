"""One forward pass over the pieces of a step: tokens and rows in, the needed logits out."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from memory_service import MemoryServiceError
from reasoning.architectures.base import Backbone, Cache
from reasoning.engine.graphs import DecodeGraphs
from reasoning.engram.row_lookup import RowLookup
from reasoning.model.batch import Batch
from reasoning.model.devices import to_device
from reasoning.scheduling.sequence import Fetch, Piece
from reasoning.scheduling.work import Work, works_of

Likeliest = tuple[tuple[int, float], ...]
"""For each position the most likely token and its logit."""


class FetchError(Exception):
    """The rows of a fetch did not arrive. The step has no effect: its other pieces can simply be run again."""

    def __init__(self, fetch: Fetch, error: MemoryServiceError):
        super().__init__(str(error))
        self.fetch = fetch


@dataclass(frozen=True)
class Wait:
    """The time that a layer waited for its rows, however short."""

    layer: int
    """The Engram layer."""
    begin: float
    """Begin, as `time.perf_counter` counts."""
    end: float
    """End, as `time.perf_counter` counts."""


@dataclass(frozen=True)
class Output:
    """Results and timings of a step."""

    works: tuple[Work, ...]
    """What each sequence ran."""
    batch: Batch
    """What the model ran: the tokens of all works end to end."""
    hidden: Tensor
    """Hidden states of these tokens, [T, ...]."""
    logits: tuple[Tensor, ...]
    """Logits of each work, [positions, vocabulary] in the model's dtype."""
    likeliest: tuple[Likeliest, ...]
    """Most likely token and its logit, for each work at the same positions."""
    began: float
    """Start of the forward pass, as `time.perf_counter` counts."""
    ended: float
    """Moment when the logits were available."""
    waits: tuple[Wait, ...]
    """Waits for rows, in the order of the layers."""

    @property
    def waited_s(self) -> float:
        """Seconds spent waiting for rows."""
        return sum(wait.end - wait.begin for wait in self.waits)

    @property
    def hidden_s(self) -> float:
        """Seconds until the first layer needed rows; the whole step where no layer does."""
        return (self.waits[0].begin if self.waits else self.ended) - self.began

    @property
    def computed_s(self) -> float:
        """Seconds spent computing."""
        return self.ended - self.began - self.waited_s


class ModelRunner:
    """Runs a model over pieces of sequences, with its cache and the memory's rows."""

    def __init__(
        self,
        model: Backbone,
        cache: Cache,
        lookup: RowLookup | None,
        vocab_size: int,
        graphs: DecodeGraphs | None = None,
    ):
        """Put the parts together.

        Args:
            model: in evaluation mode.
            cache: on the device of the model.
            lookup: None for a model without Engram layers.
            vocab_size: number of ids that may be chosen, the first ones of the model's vocabulary.
            graphs: run the model; None runs it directly.
        """
        self.model, self.cache, self.lookup, self.vocab_size = model, cache, lookup, vocab_size
        self.device, self._forward = cache.device, graphs or model

    def run(self, pieces: list[Piece]) -> Output:
        """Extend the cache by the pieces' tokens. Running the same pieces again is harmless.

        Raises:
            FetchError: rows did not arrive.
        """
        works = works_of(pieces)
        batch = batch_of(works, self.device)
        rows = BatchRows(pieces) if self.lookup is not None else None
        begin = time.perf_counter()
        hidden = self._forward(batch, rows, self.cache)
        logits = self.model.logits(hidden[to_device(_needed(works, batch), self.device)])[:, : self.vocab_size]
        counts = [work.logits for work in works]
        likeliest = iter(_likeliest(logits))
        return Output(
            tuple(works),
            batch,
            hidden,
            torch.split(logits, counts),
            tuple(tuple(itertools.islice(likeliest, count)) for count in counts),
            begin,
            time.perf_counter(),
            tuple(rows.waits) if rows is not None else (),
        )


def _likeliest(logits: Tensor) -> Likeliest:
    """Return for each row the index of the highest logit, and that logit; those of a NaN where a row has one."""
    if logits.device.type == "cpu":
        scratch = torch.empty(logits.shape[1:])
        return tuple(_highest(scratch.copy_(row).numpy()) for row in logits)
    ids = logits.argmax(-1)
    highest = logits.gather(1, ids[:, None])[:, 0]
    both = torch.stack((ids.double(), highest.double())).cpu()  # exact, and one trip from the device
    return tuple((int(token), logit) for token, logit in zip(*both.tolist(), strict=True))


def _highest(logits: np.ndarray) -> tuple[int, float]:
    """Return the same for a row on the CPU, where numpy takes a tenth of torch's time."""
    token = int(logits.argmax())
    return token, float(logits[token])


def batch_of(works: list[Work], device: torch.device) -> Batch:
    """Lay the tokens of all works end to end."""
    tokens = [work.token_ids for work in works]
    return Batch(
        to_device(torch.tensor([token for ids in tokens for token in ids]), device),
        lengths=tuple(map(len, tokens)),
        starts=tuple(work.start for work in works),
        pages=tuple(tuple(work.sequence.pages) for work in works),
    )


def _needed(works: list[Work], batch: Batch) -> Tensor:
    """Return the indices, among all tokens, of the positions whose logits are needed."""
    ends = zip(works, batch.offsets[1:], strict=True)
    return torch.tensor([index for work, end in ends for index in range(end - work.logits, end)], dtype=torch.int64)


class BatchRows:
    """A source of rows for a step's tokens, which may come from several fetches."""

    def __init__(self, pieces: Iterable[Piece]):
        self.waits: list[Wait] = []
        self._parts = _parts_of(pieces)

    def __call__(self, layer: int) -> Tensor:
        """Wait for a layer's rows and return them, [T, C * D].

        Raises:
            FetchError: they did not arrive.
        """
        begin = time.perf_counter()
        for fetch, _ in self._parts:
            self._wait(fetch, layer)
        self.waits.append(Wait(layer, begin, time.perf_counter()))
        parts = [fetch.rows.embeddings(layer, where) for fetch, where in self._parts]  # type: ignore[union-attr]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _wait(self, fetch: Fetch, layer: int) -> None:
        assert fetch.rows is not None, "a model with a memory fetches rows"
        try:
            fetch.rows.wait(layer)
        except MemoryServiceError as error:
            raise FetchError(fetch, error) from error


def _parts_of(pieces: Iterable[Piece]) -> list[tuple[Fetch, slice]]:
    """Return where the rows of the pieces lie, adjacent pieces of one fetch as one part."""
    parts: list[tuple[Fetch, slice]] = []
    for piece in pieces:
        begin, end = piece.offset, piece.offset + len(piece.token_ids)
        if parts and parts[-1][0] is piece.fetch and parts[-1][1].stop == begin:
            begin = parts.pop()[1].start
        parts.append((piece.fetch, slice(begin, end)))
    return parts

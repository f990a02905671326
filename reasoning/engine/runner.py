"""One forward pass over the pieces of a step: tokens and rows in, the logits that somebody needs out."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence as Several
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
"""For each position the likeliest token and its logit."""


class FetchError(Exception):
    """The rows of a fetch did not come; the step is undone by running it again without them."""

    def __init__(self, fetch: Fetch, error: MemoryServiceError):
        super().__init__(str(error))
        self.fetch = fetch


@dataclass(frozen=True)
class Wait:
    """The time that a layer's rows were waited for, however short."""

    layer: int
    begin: float
    end: float


@dataclass(frozen=True)
class Output:
    """What a step computed."""

    works: tuple[Work, ...]
    batch: Batch
    """What the model ran: the tokens of all works end to end."""
    hidden: Tensor
    """Their hidden states, [T, ...]."""
    logits: tuple[Tensor, ...]
    """For each work [its logits, vocabulary] in the model's dtype."""
    likeliest: tuple[Likeliest, ...]
    """For each work those of the same positions."""
    began: float
    """When the model began, as `time.perf_counter` counts."""
    ended: float
    """When the logits were there."""
    waits: tuple[Wait, ...]
    """For rows, in the order of the layers."""

    @property
    def waited_s(self) -> float:
        """Time spent waiting for rows."""
        return sum(wait.end - wait.begin for wait in self.waits)

    @property
    def hidden_s(self) -> float:
        """Time until the first layer needed rows; all of it where none does."""
        return (self.waits[0].begin if self.waits else self.ended) - self.began

    @property
    def computed_s(self) -> float:
        """Time spent computing."""
        return self.ended - self.began - self.waited_s


class ModelRunner:
    """Runs a model over pieces of sequences, with its cache and its memory's rows."""

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
            vocab_size: ids that may be chosen, the first of the model's vocabulary.
            graphs: run the model in its place, where there are any.
        """
        self.model, self.cache, self.lookup, self.vocab_size = model, cache, lookup, vocab_size
        self.device, self._forward = cache.device, graphs or model

    def run(self, pieces: Several[Piece]) -> Output:
        """Extend the cache by the pieces' tokens. Running the same pieces again does no harm.

        Raises:
            FetchError: rows did not come.
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
    """Of each row the index of the highest logit, and that logit; both NaN's where there is one."""
    if logits.device.type == "cpu":
        scratch = torch.empty(logits.shape[1:])
        return tuple(_highest(scratch.copy_(row).numpy()) for row in logits)
    ids = logits.argmax(-1)
    highest = logits.gather(1, ids[:, None])[:, 0]
    both = torch.stack((ids.double(), highest.double())).cpu()  # exact, and one trip from the device
    return tuple((int(token), logit) for token, logit in zip(*both.tolist(), strict=True))


def _highest(logits: np.ndarray) -> tuple[int, float]:
    """The same of one row on the CPU, where numpy takes a tenth of torch's time."""
    token = int(logits.argmax())
    return token, float(logits[token])


def batch_of(works: Several[Work], device: torch.device) -> Batch:
    """Lay the tokens of all works end to end."""
    tokens = [work.token_ids for work in works]
    return Batch(
        to_device(torch.tensor([token for some in tokens for token in some]), device),
        lengths=tuple(len(some) for some in tokens),
        starts=tuple(work.start for work in works),
        pages=tuple(tuple(work.sequence.pages) for work in works),
    )


def _needed(works: Several[Work], batch: Batch) -> Tensor:
    """Indices of the positions whose logits are needed among all tokens."""
    ends = zip(works, batch.offsets[1:], strict=True)
    return torch.tensor([index for work, end in ends for index in range(end - work.logits, end)], dtype=torch.int64)


class BatchRows:
    """Layer -> the rows of a step's tokens, from however many fetches they come."""

    def __init__(self, pieces: Several[Piece]):
        self.waits: list[Wait] = []
        self._parts = _parts_of(pieces)

    def __call__(self, layer: int) -> Tensor:
        """Return [T, C * D]; waits. Raises FetchError."""
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


def _parts_of(pieces: Several[Piece]) -> list[tuple[Fetch, slice]]:
    """Where the rows of the pieces lie, neighbours of one fetch as one part."""
    parts: list[tuple[Fetch, slice]] = []
    for piece in pieces:
        begin, end = piece.offset, piece.offset + len(piece.token_ids)
        if parts and parts[-1][0] is piece.fetch and parts[-1][1].stop == begin:
            begin = parts.pop()[1].start
        parts.append((piece.fetch, slice(begin, end)))
    return parts

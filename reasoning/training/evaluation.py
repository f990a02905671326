"""Held-out loss in bits a byte, which compares with compressors on the same files."""

from __future__ import annotations

import lzma
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from reasoning.architectures.base import Backbone
from reasoning.engram.row_lookup import RowLookup
from reasoning.model.batch import Batch
from reasoning.training.corpus import Stream

BATCH = 8
"""Windows that are evaluated together."""


@dataclass(frozen=True)
class HeldOutLoss:
    """Cross-entropy summed over whole documents."""

    nats: float
    """Sum of the cross-entropy of all scored tokens."""
    tokens: int
    """Number of scored tokens."""
    bytes: int
    """Size of the documents as UTF-8."""

    @property
    def nats_per_token(self) -> float:
        """Mean cross-entropy of a token."""
        return self.nats / self.tokens

    @property
    def bits_per_byte(self) -> float:
        """Bits that an ideal coder driven by the model would spend on a byte of the files."""
        return self.nats / math.log(2) / self.bytes


@dataclass(frozen=True)
class _Window:
    """Tokens of a document, of which the last `scored` predictions count."""

    tokens: np.ndarray  # [S + 1]
    scored: int


@torch.inference_mode()
def held_out_loss(model: Backbone, lookup: RowLookup | None, stream: Stream, window: int = 512) -> HeldOutLoss:
    """Score every token of every document, each with at least half a window of context if there is as much.

    Args:
        model: in evaluation mode.
        lookup: the memory; None leaves it out, which equals rows of zeros.
        stream: documents, each starting with an end-of-text token that is given, not scored.
        window: number of tokens that the model sees at once.
    """
    nats, tokens = 0.0, 0
    for group in _same_length(_windows(stream, window)):
        ids = torch.from_numpy(np.stack([item.tokens for item in group]).astype(np.int64))
        rows = None
        if lookup is not None:
            rows = lookup.request(ids[:, :-1].tolist(), [[]] * len(group))
        logits = model.logits(model(Batch.of_whole_sequences(ids[:, :-1]), rows)).unflatten(0, (len(group), -1))
        losses = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        for item, loss in zip(group, losses, strict=True):
            nats += float(loss[-item.scored :].double().sum())
            tokens += item.scored
    return HeldOutLoss(nats, tokens, int(stream.sizes.sum()))


def _windows(stream: Stream, window: int) -> Iterator[_Window]:
    for number in range(len(stream.sizes)):
        document = stream.document(number)
        done = 0  # predictions scored so far
        while done < len(document) - 1:
            end = min(done + (window if done == 0 else window // 2), len(document) - 1)
            begin = max(0, end - window)
            yield _Window(document[begin : end + 1], end - done)
            done = end


def _same_length(windows: Iterator[_Window]) -> Iterator[list[_Window]]:
    """Group windows of equal length, at most BATCH together."""
    open_groups: dict[int, list[_Window]] = {}
    for item in windows:
        group = open_groups.setdefault(len(item.tokens), [])
        group.append(item)
        if len(group) == BATCH:
            yield open_groups.pop(len(item.tokens))
    yield from open_groups.values()


def xz_bits_per_byte(texts: Sequence[bytes]) -> float:
    """Return the bits a byte of `xz -9e` on all files in a single stream, which compresses better than each alone."""
    whole = b"".join(texts)
    return 8 * len(lzma.compress(whole, preset=9 | lzma.PRESET_EXTREME)) / len(whole)

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
from reasoning.corpora.tokens import TokenShards
from reasoning.engram.row_lookup import RowLookup
from reasoning.model.batch import Batch

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


@dataclass(frozen=True)
class Documents:
    """Whole documents, each of which begins with an end-of-text token that is given, not scored."""

    tokens: Sequence[np.ndarray]
    """Token ids of each document, [n]."""
    bytes: int
    """Size of all of them as UTF-8."""

    @classmethod
    def of(cls, shards: TokenShards, most_bytes: int | None = None) -> Documents:
        """Read the documents of a corpus.

        Args:
            shards: a side of the corpus, whose sequences are those documents end to end.
            most_bytes: stop before the document that begins beyond this size; None for all.
        """
        sizes = shards.document_bytes
        begins = np.cumsum(sizes) - sizes
        count = len(sizes) if most_bytes is None else int((begins < most_bytes).sum())
        tokens, documents = _stream(shards, count)
        ends = np.searchsorted(documents, np.arange(count), side="right")
        return cls(np.split(tokens[: ends[-1]], ends[:-1]), int(sizes[:count].sum()))


def _stream(shards: TokenShards, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of the first documents end to end, and the document of each: sequences overlap by one token."""
    tokens, documents = [], []
    for number in range(len(shards)):
        found = shards.read([number])
        begin = 0 if number == 0 else 1
        kept = found.documents[0, begin:] >= 0
        tokens.append(found.tokens[0, begin:][kept])
        documents.append(found.documents[0, begin:][kept])
        if found.documents[0, -1] >= count:
            break
    return np.concatenate(tokens), np.concatenate(documents)


@torch.inference_mode()
def held_out_loss(model: Backbone, lookup: RowLookup | None, held_out: Documents, window: int = 512) -> HeldOutLoss:
    """Score every token of every document, each with at least half a window of context if there is as much.

    Args:
        model: in evaluation mode.
        lookup: the memory; None leaves it out, which equals rows of zeros.
        held_out: the documents.
        window: number of tokens that the model sees at once.
    """
    nats, tokens = 0.0, 0
    for group in _same_length(_windows(held_out, window)):
        ids = torch.from_numpy(np.stack([item.tokens for item in group]).astype(np.int64))
        rows = None
        if lookup is not None:
            rows = lookup.request(ids[:, :-1].tolist(), [[]] * len(group))
        logits = model.logits(model(Batch.of_whole_sequences(ids[:, :-1]), rows)).unflatten(0, (len(group), -1))
        losses = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        for item, loss in zip(group, losses, strict=True):
            nats += float(loss[-item.scored :].double().sum())
            tokens += item.scored
    return HeldOutLoss(nats, tokens, held_out.bytes)


def _windows(held_out: Documents, window: int) -> Iterator[_Window]:
    for document in held_out.tokens:
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

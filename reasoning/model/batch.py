"""The input of a forward pass: chunks of several sequences laid end to end, and where the cache keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from kernels.spans import Spans
from reasoning.model.devices import to_device

PAGE_TOKENS = 64
"""Positions that one page of the cache holds."""
_MOST_DECODED = 8
"""Most tokens that a decoding sequence brings: its last one and drafts."""


def pages_for(tokens: int) -> int:
    """Return how many pages cover `tokens` positions."""
    return -(-tokens // PAGE_TOKENS)


@dataclass(frozen=True)
class Batch:
    """The next tokens of B sequences, T tokens in all, without padding.

    Sequence i brings `lengths[i]` tokens that follow `starts[i]` tokens already cached. Its position p lies in page
    `pages[i][p // PAGE_TOKENS]`; its pages must cover its first `starts[i] + lengths[i]` positions. Without a cache
    there are no pages. `kept` marks the tokens whose hidden state the memory may change (None: all of them).

    Everything derived from these is computed once, on the host, and serves every layer.
    """

    token_ids: Tensor  # [T] int64
    lengths: tuple[int, ...]
    starts: tuple[int, ...]
    pages: tuple[tuple[int, ...], ...] = ()
    kept: Tensor | None = None  # [T] bool

    @classmethod
    def of_whole_sequences(cls, token_ids: Tensor) -> Batch:
        """Make a batch of B equally long sequences from their beginning; `token_ids` is [B, S]."""
        count, length = token_ids.shape
        return cls(token_ids.reshape(-1), lengths=(length,) * count, starts=(0,) * count)

    @cached_property
    def offsets(self) -> list[int]:
        """Index of each sequence's first token among the T tokens, and T itself: B + 1 numbers."""
        ends = [0]
        for length in self.lengths:
            ends.append(ends[-1] + length)
        return ends

    @property
    def last_tokens(self) -> Tensor:
        """Index of each sequence's last token, [B] int64."""
        return self._to_device(torch.tensor(self.offsets[1:]) - 1)

    @cached_property
    def positions(self) -> Tensor:
        """Position of each token in its sequence, [T] int64."""
        return self._to_device(self._host_positions)

    @cached_property
    def places(self) -> Tensor:
        """Place of each token in the cache, counted in positions: page * PAGE_TOKENS + offset; [T] int64."""
        return self._to_device(self._place(self._sequences, self._host_positions))

    def earlier(self, distances: Sequence[int]) -> Tensor:
        """Find the tokens that come `distances` positions before each token.

        Returns:
            Their places, [T, len(distances)] int64: in the cache, or among the T tokens if there are no pages; -1 where
            the sequence has no such position.
        """
        own = torch.arange(self.offsets[-1])
        found = []
        for distance in distances:
            position = self._host_positions - distance
            place = self._place(self._sequences, position.clamp_min(0)) if self.pages else own - distance
            found.append(torch.where(position < 0, -1, place))
        return self._to_device(torch.stack(found, dim=1))

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The sequences in groups that attention can process together."""
        members: dict[tuple[int, int], list[int]] = {}
        for i, (start, length) in enumerate(zip(self.starts, self.lengths, strict=True)):
            # The longest context of a group is at most 1.42 times the shortest, or both fit into a page.
            size = (max(start, PAGE_TOKENS) ** 2).bit_length() if start else 0
            members.setdefault((length, size), []).append(i)
        return tuple(self._group(sequences) for sequences in members.values())

    def _group(self, sequences: list[int]) -> Group:
        length = self.lengths[sequences[0]]
        starts = torch.tensor([self.starts[i] for i in sequences])
        own = torch.tensor([self.offsets[i] for i in sequences])[:, None] + torch.arange(length)
        if not starts.any():
            return Group(self._to_device(own))
        position = torch.arange(int(starts.max()) + length)
        seen = starts[:, None] + torch.arange(1, length + 1)  # [b, n]
        written = position < seen[:, -1:]  # past its end a sequence repeats its first position, which is written
        position = position * written
        return Group(
            tokens=self._to_device(own),
            context=self._to_device(self._place(torch.tensor(sequences)[:, None], position)),
            seen=self._to_device(torch.arange(position.shape[1]) < seen[..., None]),
        )

    @cached_property
    def parts(self) -> tuple[Decoding | Chunks, ...]:
        """The sequences by the kernel that serves their attention; a single part if all are of one kind."""
        decoding = [i for i, length in enumerate(self.lengths) if self.pages and length <= _MOST_DECODED]
        chunks = sorted({*range(len(self.lengths))} - {*decoding})
        return (*([self._decoding(decoding)] if decoding else ()), *([self._chunks(chunks)] if chunks else ()))

    def _decoding(self, sequences: list[int]) -> Decoding:
        contexts = self._contexts(sequences)
        table = self._page_table[sequences, : pages_for(max(contexts))]
        tokens, queries = self._tokens(sequences)
        return Decoding(tokens, queries, self._to_device(table), self._to_device(torch.tensor(contexts)))

    def _chunks(self, sequences: list[int]) -> Chunks:
        contexts = self._contexts(sequences)
        position = torch.cat([torch.arange(context) for context in contexts])
        owner = torch.tensor(sequences).repeat_interleave(torch.tensor(contexts))
        places = self._to_device(self._place(owner, position)) if self.pages else None
        return Chunks(*self._tokens(sequences), Spans.of(contexts, self.token_ids.device), places)

    def _tokens(self, sequences: list[int]) -> tuple[Tensor, Spans]:
        """Return the indices of some sequences' tokens among the T tokens, and how they divide."""
        tokens = torch.cat([torch.arange(self.offsets[i], self.offsets[i + 1]) for i in sequences])
        return self._to_device(tokens), Spans.of([self.lengths[i] for i in sequences], self.token_ids.device)

    def _contexts(self, sequences: list[int]) -> list[int]:
        return [self.starts[i] + self.lengths[i] for i in sequences]

    @cached_property
    def _host_positions(self) -> Tensor:
        shift = torch.tensor([s - o for s, o in zip(self.starts, self.offsets, strict=False)])
        return torch.arange(self.offsets[-1]) + shift[self._sequences]

    @cached_property
    def _sequences(self) -> Tensor:
        """Sequence that each token belongs to, [T]."""
        return torch.arange(len(self.lengths)).repeat_interleave(torch.tensor(self.lengths))

    @cached_property
    def _page_table(self) -> Tensor:
        """Page ids, [B, most pages]; sequences that need fewer pages repeat their first."""
        counts = [pages_for(s + n) for s, n in zip(self.starts, self.lengths, strict=True)]
        most = max(counts)
        rows = [pages[:n] + pages[:1] * (most - n) for pages, n in zip(self.pages, counts, strict=True)]
        return torch.tensor(rows)

    def _place(self, sequence: Tensor, position: Tensor) -> Tensor:
        page = self._page_table[sequence, position // PAGE_TOKENS]
        return page * PAGE_TOKENS + position % PAGE_TOKENS

    def _to_device(self, index: Tensor) -> Tensor:
        return to_device(index, self.token_ids.device)


@dataclass(frozen=True)
class Group:
    """b sequences of a batch that bring n tokens each and share one call of attention.

    Either they all begin with this batch, and `context` and `seen` are None; or their contexts are padded to the
    longest, S positions, with places that were written: others may hold NaN, which no mask would stop.
    """

    tokens: Tensor  # [b, n] index among the batch's T tokens
    context: Tensor | None = None  # [b, S] places in the cache
    seen: Tensor | None = None  # [b, n, S] bool: positions that a token attends to

    def contexts(self, cached: Tensor) -> Tensor:
        """Copy the contexts out of one layer's pages: [pages, PAGE_TOKENS, size] -> [b, S, size]."""
        assert self.context is not None, "a group from the start has no context"
        return cached.flatten(0, 1).index_select(0, self.context.flatten()).view(*self.context.shape, -1)


@dataclass(frozen=True)
class Decoding:
    """Sequences that bring few tokens each, t in all, which attend to the cached state in their pages."""

    tokens: Tensor  # [t] index among the batch's T tokens
    queries: Spans  # how the t tokens divide
    pages: Tensor  # [b, P] page ids; a row's values beyond its sequence's pages are arbitrary
    lengths: Tensor  # [b] int64 positions of each context, the sequence's own tokens included


@dataclass(frozen=True)
class Chunks:
    """Sequences that bring many tokens each, t in all, which attend to the keys and values of their contexts."""

    tokens: Tensor  # [t] index among the batch's T tokens
    queries: Spans  # how the t tokens divide
    contexts: Spans  # how the contexts' S positions divide, laid end to end, the sequence's own tokens included
    places: Tensor | None = None  # [S] places in the cache; None without one, where a context is the tokens themselves

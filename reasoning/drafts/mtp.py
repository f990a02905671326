"""Drafts by multi-token prediction, for all sequences of a step at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reasoning.architectures.base import Backbone, Cache
from reasoning.model.batch import PAGE_TOKENS, Batch


class MtpDrafter:
    """Drafts for all sequences of a step at once."""

    def __init__(self, model: Backbone, vocab_size: int):
        """Draft token ids below `vocab_size` with the multi-token prediction of `model`.

        Raises:
            ValueError: the model has none.
        """
        if not model.has_mtp:
            raise ValueError("drafts: this checkpoint has no multi-token prediction layer; use n-gram drafts")
        self._model, self._vocab_size = model, vocab_size

    def draft(self, hidden: Tensor, batch: Batch, counts: Sequence[int], cache: Cache) -> list[list[int]]:
        """Take in what a step brought and guess what comes after it.

        Every position that the backbone runs and keeps should come by here once, before any later one of its sequence:
        drafts are worse where attention meets latents of something else. At the end of a shared page it may, as there
        they depend on the token with which the page's first owner went on.

        Args:
            hidden: final hidden states of the T positions that the step ran, without those of rejected drafts,
                [T, ...].
            batch: these positions, in `token_ids` the token that *follows* each: the prompt's, or the one chosen.
            counts: drafts wanted for each sequence; 0 where the prompt goes on.
            cache: extended with the T positions; those of drafts are overwritten once the backbone has run them.

        Returns:
            For each sequence its drafts, the likeliest tokens after `token_ids`' last: as many as are wanted, or as
            its pages have room for.
        """
        counts = [min(count, room + 1) for count, room in zip(counts, _room(batch), strict=True)]
        ahead = self._model.predict_ahead(hidden, batch, cache)[batch.last_tokens]
        wanted = [i for i, count in enumerate(counts) if count > 0]
        ahead = ahead[wanted]
        tokens: list[Tensor] = []
        for step in range(max(counts, default=0)):
            if step:
                going = [row for row, i in enumerate(wanted) if counts[i] > step]
                wanted = [wanted[row] for row in going]
                further = _one_further(batch, tokens[-1][going], wanted, step)
                ahead = self._model.predict_ahead(ahead[going], further, cache)
            tokens.append(self._model.logits(ahead)[:, : self._vocab_size].argmax(-1))
        return _by_sequence(tokens, counts)


def _room(batch: Batch) -> list[int]:
    """Positions that each sequence's pages have left after the batch."""
    ends = (start + length for start, length in zip(batch.starts, batch.lengths, strict=True))
    return [len(pages) * PAGE_TOKENS - end for pages, end in zip(batch.pages, ends, strict=True)]


def _one_further(batch: Batch, tokens: Tensor, sequences: list[int], step: int) -> Batch:
    """The position `step` after the end of each of some sequences, followed by its latest draft."""
    starts = tuple(batch.starts[i] + batch.lengths[i] + step - 1 for i in sequences)
    return Batch(tokens, (1,) * len(sequences), starts, tuple(batch.pages[i] for i in sequences))


def _by_sequence(tokens: list[Tensor], counts: Sequence[int]) -> list[list[int]]:
    """Deal out the drafts of each step, which are of the sequences that wanted as many."""
    steps = [iter(step) for step in torch.cat(tokens).cpu().split([len(step) for step in tokens])] if tokens else []
    return [[int(next(step)) for step in steps[:count]] for count in counts]

"""Drafts by multi-token prediction, computed for all sequences of a step together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reasoning.architectures.base import Backbone, Cache
from reasoning.model.batch import PAGE_TOKENS, Batch


class MtpDrafter:
    """Computes drafts with a backbone's multi-token prediction."""

    def __init__(self, model: Backbone, vocab_size: int):
        """Draft token ids below `vocab_size` with the multi-token prediction of `model`.

        Raises:
            ValueError: the model has none.
        """
        if not model.has_mtp:
            raise ValueError("drafts: this checkpoint has no multi-token prediction layer; use n-gram drafts")
        self._model, self._vocab_size = model, vocab_size

    def draft(self, hidden: Tensor, batch: Batch, counts: Sequence[int], cache: Cache) -> list[list[int]]:
        """Run the prediction over the positions of a step, and draft what follows them.

        Every position that the backbone ran and keeps should pass through here once, in order: drafts are worse where
        attention meets cached state of other tokens. At the end of a shared page it may, because the state there
        depends on the token that followed in the page's first sequence.

        Args:
            hidden: hidden states of the T positions that the step ran, without those of rejected drafts, [T, ...].
            batch: these positions; its `token_ids` are the tokens that *follow* each: from the prompt, or as chosen.
            counts: number of drafts for each sequence; 0 where the prompt continues.
            cache: extended with the T positions; those of drafts are overwritten once the backbone has run them.

        Returns:
            The drafts of each sequence, the most likely tokens after the last of its `token_ids`: as many as requested,
            or as its pages have room for.
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
    """Return how many positions the pages of each sequence have left after the batch."""
    ends = (start + length for start, length in zip(batch.starts, batch.lengths, strict=True))
    return [len(pages) * PAGE_TOKENS - end for pages, end in zip(batch.pages, ends, strict=True)]


def _one_further(batch: Batch, tokens: Tensor, sequences: list[int], step: int) -> Batch:
    """Return the positions `step` after the end of some sequences, each followed by its latest draft."""
    starts = tuple(batch.starts[i] + batch.lengths[i] + step - 1 for i in sequences)
    return Batch(tokens, (1,) * len(sequences), starts, tuple(batch.pages[i] for i in sequences))


def _by_sequence(tokens: list[Tensor], counts: Sequence[int]) -> list[list[int]]:
    """Distribute the drafts of each step among the sequences that requested as many."""
    steps = [iter(step) for step in torch.cat(tokens).cpu().split([len(step) for step in tokens])] if tokens else []
    return [[int(next(step)) for step in steps[:count]] for count in counts]

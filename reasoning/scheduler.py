"""Which sequences the next step works on."""

from __future__ import annotations

from collections import deque

import torch

from reasoning.model.batch import Batch
from reasoning.request import Request
from reasoning.sampler import Sampler


class Sequence:
    """A request on its way: its tokens so far, and how many of them the cache holds."""

    def __init__(self, request: Request, prompt: list[int], limit: int):
        self.request, self.prompt_tokens, self.limit = request, len(prompt), limit
        self.token_ids = prompt
        self.num_cached = 0
        self.pages: tuple[int, ...] = ()
        self.sampler = Sampler(request.sampling)

    @property
    def fresh(self) -> list[int]:
        """Tokens that the model has not seen yet."""
        return self.token_ids[self.num_cached :]

    @property
    def new_tokens(self) -> list[int]:
        """Tokens generated so far."""
        return self.token_ids[self.prompt_tokens :]

    def history(self, length: int) -> list[int]:
        """Return the last `length` tokens before the fresh ones, fewer at the start."""
        return self.token_ids[max(0, self.num_cached - length) : self.num_cached]


class Scheduler:
    """First come, first served: prompts enter as slots become free, then all running sequences decode together."""

    def __init__(self, slots: int, prefill_tokens: int, slot_pages: int):
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        first = range(0, slots * slot_pages, slot_pages)
        self._free = [tuple(range(page, page + slot_pages)) for page in reversed(first)]
        self._prefill_tokens = prefill_tokens

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self.waiting and not self.running

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        self.waiting.append(sequence)

    def schedule(self) -> list[Sequence]:
        """Return the sequences of the next step: newly admitted prompts if any fit, else all that run."""
        admitted: list[Sequence] = []
        budget = self._prefill_tokens
        while self.waiting and self._free and (not admitted or len(self.waiting[0].fresh) <= budget):
            sequence = self.waiting.popleft()
            sequence.pages = self._free.pop()
            budget -= len(sequence.fresh)
            admitted.append(sequence)
        self.running += admitted
        return admitted or list(self.running)

    def finish(self, sequence: Sequence) -> None:
        """Take a sequence out and free its pages."""
        self.running.remove(sequence)
        self._free.append(sequence.pages)


def batch_of(sequences: list[Sequence]) -> Batch:
    """Lay the fresh tokens of the sequences end to end."""
    fresh = [sequence.fresh for sequence in sequences]
    return Batch(
        torch.tensor([token for tokens in fresh for token in tokens]),
        lengths=tuple(len(tokens) for tokens in fresh),
        starts=tuple(sequence.num_cached for sequence in sequences),
        pages=tuple(sequence.pages for sequence in sequences),
    )

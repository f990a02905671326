"""Drafts for all sequences of an engine: by multi-token prediction where the checkpoint has it, else by n-grams."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from reasoning.architectures.base import Backbone, Cache
from reasoning.drafts.length import DraftLength, DraftPolicy
from reasoning.drafts.mtp import MtpDrafter
from reasoning.drafts.ngram import NgramDrafts
from reasoning.drafts.source import KINDS, ComputedDrafts, Drafter
from reasoning.model.batch import Batch
from reasoning.model.devices import to_device
from reasoning.scheduling.sequence import Sequence
from reasoning.scheduling.work import Work


@dataclass(frozen=True)
class Outcome:
    """The result of a step for a sequence that continues."""

    work: Work
    """What the sequence ran."""
    accepted: int
    """Number of drafts that were right."""
    following: list[int]
    """The token after each position that the step ran and the sequence keeps."""


@dataclass
class _State:
    """The state of drafting for a sequence."""

    drafter: Drafter
    length: DraftLength


class Drafting:
    """Proposes drafts for sequences and adapts to how many were right."""

    def __init__(self, kind: str, policy: DraftPolicy, model: Backbone, cache: Cache, vocab_size: int):
        """Draft by n-grams ("ngram"), multi-token prediction ("mtp"), the better one ("auto") or not at all ("none").

        Raises:
            ValueError: the kind is unknown, or the checkpoint has no multi-token prediction.
        """
        if kind not in KINDS:
            raise ValueError(f"drafts: {kind!r} is unknown; use one of {', '.join(KINDS)}")
        if kind == "auto":
            kind = "mtp" if model.has_mtp else "ngram"
        self.kind, self._policy, self._cache = kind, policy, cache
        self._mtp = MtpDrafter(model, vocab_size) if kind == "mtp" else None
        self._states: dict[Sequence, _State] = {}
        self.proposed = self.accepted = 0

    def propose(self, sequence: Sequence) -> list[int]:
        """Return drafts of what follows the sequence's last token; never beyond its end."""
        if self.kind == "none":
            return []
        state = self._state(sequence)
        room = sequence.limit - len(sequence.token_ids) - 1  # the token after the last draft must fit as well
        return state.drafter.propose(max(0, min(state.length.length, room)))

    def _state(self, sequence: Sequence) -> _State:
        if sequence not in self._states:
            drafter = ComputedDrafts() if self._mtp is not None else NgramDrafts(sequence.token_ids)
            self._states[sequence] = _State(drafter, DraftLength(self._policy))
        return self._states[sequence]

    def learn(self, hidden: Tensor, outcomes: list[Outcome]) -> None:
        """Record what a step ran, for all sequences that continue, and compute drafts if that takes a model.

        Args:
            hidden: hidden states of the step's tokens, [T, ...].
            outcomes: results of the works whose sequences continue.
        """
        for outcome in outcomes:
            drafts = outcome.work.drafts
            self.proposed += len(drafts)
            self.accepted += outcome.accepted
            if self.kind != "none" and outcome.work.logits:
                state = self._state(outcome.work.sequence)
                state.length.record(len(drafts), outcome.accepted)
                state.drafter.extend(outcome.following[-outcome.accepted - 1 :])
        if self._mtp is not None and outcomes:
            self._compute(self._mtp, hidden, outcomes)

    def _compute(self, mtp: MtpDrafter, hidden: Tensor, outcomes: list[Outcome]) -> None:
        """Run multi-token prediction over the step's positions, and keep its drafts."""
        index = [o.work.offset + i for o in outcomes for i in range(len(o.following))]
        following = torch.tensor([token for o in outcomes for token in o.following])
        batch = Batch(
            to_device(following, hidden.device),
            lengths=tuple(len(o.following) for o in outcomes),
            starts=tuple(o.work.start for o in outcomes),
            pages=tuple(tuple(o.work.sequence.pages) for o in outcomes),
        )
        states = [self._state(o.work.sequence) if o.work.logits else None for o in outcomes]
        counts = [0 if state is None else state.length.length for state in states]
        for state, drafts in zip(states, mtp.draft(hidden[index], batch, counts, self._cache), strict=True):
            if state is not None and isinstance(state.drafter, ComputedDrafts):
                state.drafter.offer(drafts)

    def forget(self, sequence: Sequence) -> None:
        """Drop the state of a sequence that has ended."""
        self._states.pop(sequence, None)

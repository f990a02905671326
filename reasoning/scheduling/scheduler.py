"""Which tokens run next, which rows are requested ahead of them, and which sequences yield when pages run out."""

from __future__ import annotations

import bisect
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from reasoning.engram.row_lookup import PendingRows, wait_any
from reasoning.model.batch import pages_for
from reasoning.scheduling.pace import Pace
from reasoning.scheduling.pages import PagePool
from reasoning.scheduling.sequence import Fetch, Piece, Sequence

_CHUNK_TOKENS = 512
"""Prompt tokens of one lookup. A step may take the tokens of several lookups."""

Ask = Callable[[list[Piece]], PendingRows | None]
"""Requests the rows of pieces from the memory and returns at once."""
Draft = Callable[[Sequence], list[int]]
"""Returns draft tokens for what follows a sequence's last token."""


@dataclass(frozen=True)
class Limits:
    """Limits on what runs at once."""

    max_batch: int
    """Most sequences that run together."""
    prefill_tokens: int
    """Most prompt tokens in a step."""
    overlap: bool = True
    """Whether rows travel while other tokens are computed."""


@dataclass(frozen=True)
class _Group:
    """Sequences that run together once all their rows have landed. A snapshot of one moment: rows land at any time."""

    sequences: list[Sequence]
    """A cohort, or a single prompt."""
    pending: list[PendingRows]
    """Their rows that have not landed."""

    @classmethod
    def of(cls, sequences: list[Sequence]) -> _Group:
        """Record which rows have landed."""
        fetches = {sequence.pieces[0].fetch for sequence in sequences}
        return cls(sequences, [fetch.rows for fetch in fetches if fetch.rows is not None and not fetch.landed])

    @property
    def decoding(self) -> bool:
        """Whether the group is a cohort, not a prompt."""
        return self.sequences[0].decoding

    @property
    def sent(self) -> list[float]:
        """When the pending rows were requested."""
        return [rows.sent for rows in self.pending]


class Scheduler:
    """First come, first served, among the sequences whose rows have landed.

    `send` requests the rows of everything that can run next, ahead of need. `take` returns the pieces of the next
    step: one cohort of decoding sequences and as many chunks of prompts as fit. The caller runs them and calls `done`;
    after a failed step it does not, and the pieces can be taken again. A cohort also counts as landed shortly before
    its rows are expected: the first layers hide that wait, or it costs less than a step without the cohort.
    """

    def __init__(self, limits: Limits, pool: PagePool, ask: Ask, draft: Draft):
        self.limits, self.pool = limits, pool
        self.waiting: list[Sequence] = []
        """Queued sequences in order of arrival."""
        self.running: list[Sequence] = []
        """Sequences that have started."""
        self.fetches: list[Fetch] = []
        """Lookups with live pieces."""
        self.cohorts = 1
        """Number of cohorts that decoding sequences are divided into; set by the caller."""
        self.pace = Pace()
        """Timings of the steps so far; recorded by the caller."""
        self.preemptions = 0
        """How often a running sequence had to yield its pages."""
        self._ask, self._draft = ask, draft
        self._chunk = min(_CHUNK_TOKENS, limits.prefill_tokens)
        self._ahead = limits.prefill_tokens * (2 if limits.overlap else 1)
        self._latest_cohort = 1

    @property
    def idle(self) -> bool:
        """Whether no sequence runs or waits."""
        return not self.waiting and not self.running

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence by its order of arrival."""
        bisect.insort(self.waiting, sequence, key=_order)

    def remove(self, sequence: Sequence) -> None:
        """Take out a sequence for good, running or waiting, and release its pages."""
        (self.running if sequence.started else self.waiting).remove(sequence)
        sequence.drop(self.pool)
        sequence.ended = True
        self._forget_dead()

    def send(self) -> None:
        """Request the rows of the tokens that can run next."""
        for cohort in self._idle_cohorts():
            self._fetch([self._next_token(sequence) for sequence in cohort])
        room = self._ahead - sum(len(p.token_ids) for s in self._in_flight() if not s.decoding for p in s.pieces)
        for sequence in self._prompts():
            if room <= 0:
                break
            if not sequence.started and not sequence.pieces:
                sequence.share_prefix(self.pool)
            room -= self._send_chunks(sequence, room)

    def _prompts(self) -> Iterator[Sequence]:
        """Yield sequences with more than their last token to run, started ones first."""
        yield from (sequence for sequence in self.running if not sequence.decoding)
        yield from (sequence for sequence in self.waiting if sequence.first is None or sequence.first.past_prompt)

    def _in_flight(self) -> list[Sequence]:
        """Return the sequences with live pieces, started ones first."""
        sequences = {piece.sequence for fetch in self.fetches for piece in fetch.live}
        return sorted(sequences, key=lambda sequence: (not sequence.started, sequence.order))

    def _send_chunks(self, sequence: Sequence, room: int) -> int:
        sent = 0
        while sequence.requested < len(sequence.token_ids) and sent < room:
            start = sequence.requested
            piece = Piece(sequence, start, sequence.token_ids[start : start + self._chunk])
            self._fetch([piece])
            sent += len(piece.token_ids)
        return sent

    def _next_token(self, sequence: Sequence) -> Piece:
        drafts = self._draft(sequence)
        return Piece(sequence, sequence.num_cached, [sequence.token_ids[-1], *drafts], len(drafts))

    def _fetch(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            piece.sequence.pieces.append(piece)
        self.fetches.append(Fetch(pieces, self._ask(pieces)))

    def _idle_cohorts(self) -> list[list[Sequence]]:
        """Return the decoding sequences without pieces by cohort, after balancing the cohorts."""
        decoding = [sequence for sequence in self.running if sequence.decoding]
        size = [sum(sequence.cohort == cohort for sequence in decoding) for cohort in range(2)]
        idle: list[list[Sequence]] = [[], []]
        for sequence in decoding:
            if sequence.pieces:
                continue
            here = sequence.cohort
            if here >= self.cohorts or (self.cohorts == 2 and size[here] > size[1 - here] + 1):
                sequence.cohort = 1 - here
                size[here] -= 1
                size[1 - here] += 1
            idle[sequence.cohort].append(sequence)
        return [cohort for cohort in idle if cohort]

    def take(self) -> list[Piece]:
        """Return the pieces of the next step, with pages for all their tokens; waits for rows if it must.

        Pieces of one sequence are adjacent. The list is empty when nothing can run, or when every sequence that could
        run had to yield its pages.
        """
        while groups := self._groups():
            ready = self._ready(groups)
            if ready:
                return self._with_room(self._choose(ready))
            self._wait(groups)
        return []

    def _groups(self) -> list[_Group]:
        """Return what can run next: cohorts, the one that has waited longer first, then each prompt."""
        sequences = self._in_flight()
        order = (1 - self._latest_cohort, self._latest_cohort)
        cohorts = [[s for s in sequences if s.decoding and s.cohort == cohort] for cohort in order]
        place = len(self.running) < self.limits.max_batch
        prompts = [[s] for s in sequences if not s.decoding and (s.started or place)]
        return [_Group.of(members) for members in (*cohorts, *prompts) if members]

    def _ready(self, groups: list[_Group]) -> list[_Group]:
        if not self.limits.overlap:
            for fetch in self.fetches:
                fetch.wait()
            return groups
        if len(groups) == 1:
            return groups  # nothing else could run meanwhile, and the first layers hide part of the wait
        landed = [group for group in groups if not group.pending]
        if landed and landed[0].decoding:
            return landed
        due = [group for group in groups if group.decoding and all(map(self.pace.is_due, group.sent))]
        return due[:1] + landed

    def _wait(self, groups: list[_Group]) -> None:
        """Wait until rows land or a cohort is due."""
        due = [self.pace.due(max(group.sent))[0] for group in groups if group.decoding]
        later = [moment for moment in due if moment > time.perf_counter()]
        wait_any([rows for group in groups for rows in group.pending], min(later, default=math.inf))

    def _choose(self, ready: list[_Group]) -> list[Piece]:
        pieces: list[Piece] = []
        if ready[0].decoding:
            pieces += [sequence.pieces[0] for sequence in ready[0].sequences]
            self._latest_cohort = ready[0].sequences[0].cohort
        budget = self.limits.prefill_tokens
        for sequence in (group.sequences[0] for group in ready if not group.decoding):
            if len(sequence.pieces[0].token_ids) > budget or not (sequence.started or self._start(sequence)):
                break
            for piece in sequence.pieces:
                if len(piece.token_ids) > budget or not (piece is sequence.pieces[0] or piece.fetch.landed):
                    break
                pieces.append(piece)
                budget -= len(piece.token_ids)
        return pieces

    def _start(self, sequence: Sequence) -> bool:
        """Start a waiting sequence, unless the batch is full or pages for its prompt are missing."""
        needed = pages_for(len(sequence.token_ids)) - len(sequence.pages)
        growth = sum(pages_for(s.limit) > len(s.pages) for s in self.running)  # or some sequence had to yield at once
        if len(self.running) == self.limits.max_batch or (self.running and self.pool.available < needed + growth):
            return False
        self.waiting.remove(sequence)
        self.running.append(sequence)
        sequence.started = True
        if sequence.share_prefix(self.pool):  # another sequence computed more of it since its rows were requested
            sequence.drop_pieces()
            self._forget_dead()
        return True

    def _with_room(self, pieces: list[Piece]) -> list[Piece]:
        for piece in pieces:
            if piece.live:
                self._make_room(piece)
        return [piece for piece in pieces if piece.live]

    def _make_room(self, piece: Piece) -> None:
        """Give a piece's sequence the pages it needs; the latest arrivals yield theirs, possibly itself."""
        sequence = piece.sequence
        needed = pages_for(piece.end) - len(sequence.pages)
        while self.pool.available < needed and piece.live:
            self._preempt(max((s for s in (*self.running, *self.waiting) if s.pages or s is sequence), key=_order))
        if piece.live:
            sequence.pages += [self.pool.take() for _ in range(needed)]

    def _preempt(self, sequence: Sequence) -> None:
        """Send a sequence back to the queue. It keeps its tokens; its pages are reused once others need them."""
        if sequence.started:
            self.running.remove(sequence)
            self.add(sequence)
            self.preemptions += 1
        sequence.drop(self.pool)
        self._forget_dead()

    def done(self, pieces: list[Piece]) -> None:
        """Remove pieces that have run."""
        for piece in pieces:
            piece.live = False
            piece.sequence.pieces.remove(piece)
        self._forget_dead()

    def _forget_dead(self) -> None:
        self.fetches = [fetch for fetch in self.fetches if fetch.live]

    def check_integrity(self) -> None:
        """Check that pages, pieces and fetches are consistent.

        Raises:
            AssertionError: they are not.
        """
        sequences = [*self.running, *self.waiting]
        self.pool.check_integrity([sequence.pages for sequence in sequences])
        in_flight = Counter(piece for sequence in sequences for piece in sequence.pieces)
        assert in_flight == Counter(piece for fetch in self.fetches for piece in fetch.live), "a piece is lost"
        assert all(sequence.started for sequence in self.running), "a sequence runs that was not started"
        assert not any(sequence.started for sequence in self.waiting), "a sequence waits that was started"
        assert len(self.running) <= self.limits.max_batch, "too many run"
        for sequence in sequences:
            sequence.check_integrity()


def _order(sequence: Sequence) -> int:
    return sequence.order

"""One or two cohorts of decoding sequences: chosen by what the wait for rows costs, and what halving a batch costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

_ROUNDS = 16
"""Rounds that make a turn; in a round every sequence has its step."""
_SETTLE = 2
"""Rounds before a turn, after another number of cohorts was chosen, that are not counted."""
_WORTH = 0.03
"""Part of the time, spent waiting, from which two cohorts are tried; and part that they must save to be kept."""
_REST = 32
"""Turns until a choice is questioned, unless the circumstances change."""
_CHANGED = 1.5
"""Ratio of round trips, or of numbers of sequences, that counts as a change."""


@dataclass(frozen=True)
class Step:
    """A step that did nothing but decode, and followed on another such."""

    sequences: int
    """That decoded."""
    seconds: float
    """Since the step before ended."""
    waited_s: float
    """Part of them spent waiting for rows."""
    round_trip_s: float
    """Of its rows."""


@dataclass(frozen=True)
class _Turn:
    """Some rounds with the same number of cohorts, in one figure each."""

    sequences: int
    cost_s: float
    """Of one sequence's step: median of the rounds, which a machine's hiccup does not move."""
    exposed: float
    """Part of the time spent waiting."""
    round_trip_s: float

    @classmethod
    def of(cls, steps: Sequence[Step], cohorts: int) -> _Turn:
        """Sum up a turn; the steps of a round follow each other."""
        rounds = [steps[i : i + cohorts] for i in range(0, len(steps), cohorts)]
        sizes = [sum(step.sequences for step in some) for some in rounds]
        costs = [sum(step.seconds for step in some) / size for some, size in zip(rounds, sizes, strict=True)]
        exposed = sum(step.waited_s for step in steps) / sum(step.seconds for step in steps)
        return cls(round(median(sizes)), median(costs), exposed, median(step.round_trip_s for step in steps))

    def is_like(self, other: _Turn) -> bool:
        """Whether both were taken under the same circumstances."""
        pairs = (self.round_trip_s, other.round_trip_s), (self.sequences, other.sequences)
        return all(max(pair) <= _CHANGED * min(pair) for pair in pairs)


class CohortTuner:
    """Decides how many cohorts decode, from steps that did nothing but decode.

    With one cohort, the layers before the first Engram layer hide a part of the round trip and the rest is waited
    for. With two, one computes while the other's rows travel, but each step reads all weights for half the sequences.
    Which costs less only a trial tells: when waiting shows, two take a turn, and are kept if they are faster. Every 32
    turns, and when the round trip or the number of sequences changes, the choice is made anew.
    """

    def __init__(self, fixed: int | None = None):
        """`fixed` cohorts, or None to decide."""
        self.cohorts = fixed or 1
        self._fixed = fixed is not None
        self._steps: list[Step] = []
        self._skip = _SETTLE
        self._alone: _Turn | None = None  # how one cohort did, while two are tried
        self._chosen: _Turn | None = None  # how the choice did that is kept
        self._rest = 0

    def record(self, step: Step) -> None:
        """Take in a step; `cohorts` may be another afterwards."""
        if self._fixed:
            return
        self._steps.append(step)
        if len(self._steps) == self.cohorts * (self._skip + _ROUNDS):
            turn = _Turn.of(self._steps[self.cohorts * self._skip :], self.cohorts)
            self._steps.clear()
            self._skip = 0
            self._judge(turn)

    def _judge(self, turn: _Turn) -> None:
        if self._alone is not None:
            self._decide(self._alone, turn)
        elif self._chosen is not None and self._rest > 0 and turn.is_like(self._chosen):
            self._rest -= 1
        elif self.cohorts == 2:
            self._switch(1)  # how one does was measured long ago, or under other circumstances
        elif turn.exposed > _WORTH and turn.sequences > 1:
            self._alone = turn
            self._switch(2)

    def _decide(self, alone: _Turn, together: _Turn) -> None:
        self._alone = None
        if not together.is_like(alone):
            self._switch(1)
        elif together.cost_s > (1 - _WORTH) * alone.cost_s:
            self._switch(1)
            self._chosen, self._rest = alone, _REST
        else:
            self._chosen, self._rest = together, _REST

    def _switch(self, cohorts: int) -> None:
        self.cohorts, self._skip, self._chosen = cohorts, _SETTLE, None

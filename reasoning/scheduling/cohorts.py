"""Choose between one and two cohorts of decoding sequences: waiting for rows against halving the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

_ROUNDS = 16
"""Rounds in a turn; in a round every sequence runs one step."""
_SETTLE = 2
"""Rounds that are skipped after the number of cohorts changed, before the next turn is measured."""
_WORTH = 0.03
"""Fraction of the time spent waiting above which two cohorts are tried, and fraction they must save to be kept."""
_REST = 32
"""Turns after which a choice is reconsidered, even if the conditions have not changed."""
_CHANGED = 1.5
"""Ratio of round trips, or of numbers of sequences, that counts as a change of conditions."""


@dataclass(frozen=True)
class Step:
    """Measurements of a decode-only step whose predecessor was decode-only too."""

    sequences: int
    """Sequences that decoded in the step."""
    seconds: float
    """Seconds since the previous step ended."""
    waited_s: float
    """Part of these seconds spent waiting for rows."""
    round_trip_s: float
    """Seconds from requesting the step's rows to their arrival."""


@dataclass(frozen=True)
class _Turn:
    """Summary of several rounds with the same number of cohorts."""

    sequences: int
    """Median number of sequences in a round."""
    cost_s: float
    """Seconds a sequence takes for one step: the median over rounds, which a single slow round does not move."""
    exposed: float
    """Fraction of the time spent waiting for rows."""
    round_trip_s: float
    """Median round trip."""

    @classmethod
    def of(cls, steps: Sequence[Step], cohorts: int) -> _Turn:
        """Summarise a turn; the steps of a round are adjacent."""
        rounds = [steps[i : i + cohorts] for i in range(0, len(steps), cohorts)]
        sizes = [sum(step.sequences for step in group) for group in rounds]
        costs = [sum(step.seconds for step in group) / size for group, size in zip(rounds, sizes, strict=True)]
        exposed = sum(step.waited_s for step in steps) / sum(step.seconds for step in steps)
        return cls(round(median(sizes)), median(costs), exposed, median(step.round_trip_s for step in steps))

    def is_like(self, other: _Turn) -> bool:
        """Whether both turns were measured under similar conditions."""
        pairs = (self.round_trip_s, other.round_trip_s), (self.sequences, other.sequences)
        return all(max(pair) <= _CHANGED * min(pair) for pair in pairs)


class CohortTuner:
    """Chooses the number of cohorts from measurements of decode-only steps.

    With one cohort, the layers before the first Engram layer hide part of the round trip, and the step waits for the
    rest. With two, one cohort computes while the other's rows travel, but each step reads all weights for half the
    sequences. Only a trial shows which is cheaper: when the wait is noticeable, two cohorts are tried for a turn and
    kept if they are faster. The choice is made again every 32 turns, and when the round trip or the number of
    sequences changes.
    """

    def __init__(self, fixed: int | None = None):
        """Use `fixed` cohorts, or choose where it is None."""
        self.cohorts = fixed or 1
        self._fixed = fixed is not None
        self._steps: list[Step] = []
        self._skip = _SETTLE
        self._alone: _Turn | None = None  # the turn with one cohort, while two are tried
        self._chosen: _Turn | None = None  # the turn that decided the current choice
        self._rest = 0

    def record(self, step: Step) -> None:
        """Record a step; this may change `cohorts`."""
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
            self._switch(1)  # the measurement with one cohort is old, or of other conditions
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

"""One or two cohorts of decoding sequences: chosen by what the wait for rows costs, and what halving a batch costs."""

from __future__ import annotations

_SMOOTHING = 0.2
"""Weight of the latest step in a running mean."""
_TRIAL_STEPS = 16
"""Steps after which a way of running is judged."""
_EXPOSED = 0.02
"""Part of the time spent waiting that is worth a trial of two cohorts."""
_RETRY_STEPS = 512
"""Steps until a way that lost is tried again, unless the round trip changes."""
_CHANGED = 1.5
"""Ratio of round trips that counts as a change."""


class CohortTuner:
    """Decides how many cohorts decode, from steps that did nothing but decode.

    With one cohort, the layers before the first Engram layer hide a part of the round trip and the rest is waited
    for. With two, one computes while the other's rows travel, but each step reads all weights for half the
    sequences. When waiting shows, two are tried for a while, and the faster way is kept.
    """

    def __init__(self, fixed: int | None = None):
        """`fixed` cohorts, or None to decide."""
        self.cohorts = fixed or 1
        self._fixed = fixed is not None
        self.round_trip_s = self.hidden_s = 0.0
        self._speed = {1: 0.0, 2: 0.0}
        self._exposed = 0.0
        self._steps = 0
        self._rest = 0
        self._tried_at_s = 0.0

    def record(self, tokens: int, seconds: float, waited_s: float, round_trip_s: float, hidden_s: float) -> None:
        """Take in a step that only decoded.

        Args:
            tokens: that came out of it.
            seconds: since the step before ended.
            waited_s: part of them spent waiting for rows.
            round_trip_s: of the step's lookup.
            hidden_s: from the step's beginning to the first layer that needed rows, waiting not counted.
        """
        self.round_trip_s = _mean(self.round_trip_s, round_trip_s)
        self.hidden_s = _mean(self.hidden_s, hidden_s)
        if self._fixed:
            return
        self._steps += 1
        self._speed[self.cohorts] = _mean(self._speed[self.cohorts], tokens / seconds)
        self._exposed = _mean(self._exposed, waited_s / seconds)
        if self._steps >= _TRIAL_STEPS:
            self._judge()

    def _judge(self) -> None:
        self._rest -= 1
        changed = max(self.round_trip_s, self._tried_at_s) > _CHANGED * min(self.round_trip_s, self._tried_at_s)
        if self.cohorts == 1:
            if self._exposed > _EXPOSED and (self._rest <= 0 or changed):
                self._switch(2)
                self._tried_at_s = self.round_trip_s
        elif self._speed[2] < self._speed[1] or self.round_trip_s < self.hidden_s:
            self._switch(1)
            self._rest = _RETRY_STEPS
        elif changed:
            self._switch(1)  # the speed of one cohort was measured under another round trip: measure it again
            self._rest = 0

    def _switch(self, cohorts: int) -> None:
        self.cohorts, self._steps = cohorts, 0
        self._speed[cohorts] = self._exposed = 0.0


def _mean(mean: float, value: float) -> float:
    return value if mean == 0.0 else mean + _SMOOTHING * (value - mean)

"""Recent timings: the round trip to the memory, a decode step, and its layers before the first Engram layer."""

from __future__ import annotations

import time
from collections import deque
from statistics import median

_STEPS = 15
"""Number of recent steps that the medians cover."""
_PATIENCE = 0.25
"""Wait up to this fraction of a decode step before running a prefill-only step. Each step reads all weights, so two
steps cost more than a combined one, on any device by more than this fraction."""
_LATE = 2.0
"""Round trips after which rows count as late and are no longer waited for."""


class Pace:
    """Medians over recent decode-only steps."""

    def __init__(self) -> None:
        self._trips: deque[float] = deque(maxlen=_STEPS)
        self._hidden: deque[float] = deque(maxlen=_STEPS)
        self._computed: deque[float] = deque(maxlen=_STEPS)
        self.round_trip_s = 0.0
        """Seconds from requesting rows to the arrival of the first layer's rows; 0 before the first step."""
        self.hidden_s = 0.0
        """Seconds from the start of a step to the first layer that needs rows."""
        self.computed_s = 0.0
        """Seconds that a step computes, without its waits."""

    def record(self, round_trip_s: float, hidden_s: float, computed_s: float) -> None:
        """Record the timings of a step."""
        self._trips.append(round_trip_s)
        self._hidden.append(hidden_s)
        self._computed.append(computed_s)
        self.round_trip_s, self.hidden_s = median(self._trips), median(self._hidden)
        self.computed_s = median(self._computed)

    def due(self, sent: float) -> tuple[float, float]:
        """The time window in which a step should wait for the rows requested at `sent` instead of running without them.

        Returns:
            Begin and end of the window; it is empty, with the end before the begin, until a step was recorded.
        """
        if not self.round_trip_s:
            return sent, sent - 1.0
        early = self.hidden_s + _PATIENCE * self.computed_s
        return sent + self.round_trip_s - early, sent + _LATE * self.round_trip_s

    def is_due(self, sent: float) -> bool:
        """Whether the current time is in that window."""
        begin, end = self.due(sent)
        return begin <= time.perf_counter() <= end

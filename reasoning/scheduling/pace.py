"""How long things take here: a round trip to the memory, a decoding step, and its layers before the first rows."""

from __future__ import annotations

import time
from collections import deque
from statistics import median

_STEPS = 15
"""Recent steps that the medians are of."""
_PATIENCE = 0.25
"""Part of a decoding step that is rather waited than spent on a step for prompts alone. Each step reads all weights, so
that two cost more than one with everybody in it, on any device by more than this."""
_LATE = 2.0
"""Round trips after which rows are late, and nobody counts on them any more."""


class Pace:
    """Medians of recent steps that did nothing but decode."""

    def __init__(self) -> None:
        self._trips: deque[float] = deque(maxlen=_STEPS)
        self._hidden: deque[float] = deque(maxlen=_STEPS)
        self._computed: deque[float] = deque(maxlen=_STEPS)
        self.round_trip_s = 0.0
        """From asking for rows to having those of the first layer; 0 before there was a step."""
        self.hidden_s = 0.0
        """From a step's beginning to the first layer that needs rows."""
        self.computed_s = 0.0
        """Of a step, waiting not counted."""

    def record(self, round_trip_s: float, hidden_s: float, computed_s: float) -> None:
        """Take in a step."""
        self._trips.append(round_trip_s)
        self._hidden.append(hidden_s)
        self._computed.append(computed_s)
        self.round_trip_s, self.hidden_s = median(self._trips), median(self._hidden)
        self.computed_s = median(self._computed)

    def due(self, sent: float) -> tuple[float, float]:
        """When a step should rather begin and wait for rows that were asked for at `sent` than run without them.

        Returns:
            begin and end of that time; the end comes first when nothing is known yet.
        """
        if not self.round_trip_s:
            return sent, sent - 1.0
        early = self.hidden_s + _PATIENCE * self.computed_s
        return sent + self.round_trip_s - early, sent + _LATE * self.round_trip_s

    def is_due(self, sent: float) -> bool:
        """Whether it is that time."""
        begin, end = self.due(sent)
        return begin <= time.perf_counter() <= end

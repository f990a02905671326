"""How many drafts a sequence gets: fewer where they proved wrong, as each costs a token's computation."""

from __future__ import annotations

import math
from dataclasses import dataclass

_WEIGHT = 1 / 8
"""How much one tested draft moves the estimate of the chance that a draft is right."""
_FADE = 1 / 64
"""How far the estimate returns to where it began in a step that tests no draft, so that drafts are tried again."""


@dataclass(frozen=True)
class DraftPolicy:
    """When a draft is worth its price."""

    longest: int = 4
    """Drafts of a step at most."""
    free: int = 0
    """Drafts that cost nothing to check, as on a device that waits for its memory anyway: always proposed."""
    price: float = 0.4
    """What checking a draft costs, as a part of what a token costs without drafts: between 0 and 1. On a CPU about a
    fifth for one sequence alone, over half for 32 together."""

    def __post_init__(self) -> None:
        if not 0 <= self.free <= self.longest:
            raise ValueError(f"free: {self.free!r} is not from 0 to longest={self.longest!r}; use a smaller one")
        if not 0 < self.price < 1:
            raise ValueError(f"price: {self.price!r} is out of range; use a number between 0 and 1")

    @property
    def hope(self) -> float:
        """Chance that drafts are right before any was tested: halfway from where one begins to be worth its price."""
        return (self.price + 1) / 2

    def length(self, chance: float) -> int:
        """Return how many drafts to propose when each is right with this chance, given that those before it were.

        The k-th draft is of use with probability chance^k, which must be worth its price.
        """
        if chance >= 1:
            return self.longest
        worth = math.log(self.price) / math.log(chance) if chance > 0 else 0
        return max(self.free, min(self.longest, math.floor(worth)))


class DraftLength:
    """How many drafts to propose for one sequence, from how its last ones did."""

    def __init__(self, policy: DraftPolicy):
        self._policy = policy
        self._chance = policy.hope

    @property
    def length(self) -> int:
        """Drafts to propose at most in the next step."""
        return self._policy.length(self._chance)

    def record(self, proposed: int, accepted: int) -> None:
        """Learn from a step that accepted the first `accepted` of `proposed` drafts."""
        assert 0 <= accepted <= proposed, (accepted, proposed)
        if not proposed:
            self._chance += (self._policy.hope - self._chance) * _FADE
        for _ in range(accepted):
            self._chance += (1 - self._chance) * _WEIGHT
        if accepted < proposed:  # drafts after the first wrong one were not tested
            self._chance -= self._chance * _WEIGHT

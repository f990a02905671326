"""How many drafts a sequence gets: fewer after wrong ones, because each costs the computation of a token."""

from __future__ import annotations

import math
from dataclasses import dataclass

_WEIGHT = 1 / 8
"""Weight of one tested draft in the estimated probability that a draft is right."""
_FADE = 1 / 64
"""How far the estimate returns to its initial value in a step without drafts, so that drafts are tried again."""


@dataclass(frozen=True)
class DraftPolicy:
    """When a draft is worth its cost."""

    longest: int = 4
    """Most drafts of a sequence in a step."""
    free: int = 0
    """Number of drafts that cost nothing to verify, because the device waits for its memory anyway: always proposed."""
    price: float = 0.4
    """Cost of verifying a draft as a fraction, between 0 and 1, of the cost of a token without drafts. On a CPU it is
    about a fifth for a single sequence, and over half for 32 together."""

    def __post_init__(self) -> None:
        if not 0 <= self.free <= self.longest:
            raise ValueError(f"free: {self.free!r} is not from 0 to longest={self.longest!r}; use a smaller one")
        if not 0 < self.price < 1:
            raise ValueError(f"price: {self.price!r} is out of range; use a number between 0 and 1")

    @property
    def hope(self) -> float:
        """Assumed probability of a right draft before any was tested: halfway between break-even and certainty."""
        return (self.price + 1) / 2

    def length(self, chance: float) -> int:
        """Return how many drafts to propose if each is right with this probability, given that those before it are.

        The k-th draft is useful with probability chance^k, which must be worth its price.
        """
        if chance >= 1:
            return self.longest
        worth = math.log(self.price) / math.log(chance) if chance > 0 else 0
        return max(self.free, min(self.longest, math.floor(worth)))


class DraftLength:
    """How many drafts to propose for a sequence, given how many of its recent ones were right."""

    def __init__(self, policy: DraftPolicy):
        self._policy = policy
        self._chance = policy.hope

    @property
    def length(self) -> int:
        """Most drafts to propose in the next step."""
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

"""Both kinds of drafts serve an engine that knows only `Drafter`."""

from __future__ import annotations

import pytest

from reasoning.drafts.ngram import NgramDrafts
from reasoning.drafts.source import ComputedDrafts, Drafter


@pytest.mark.parametrize("make", [NgramDrafts, ComputedDrafts])
def test_a_drafter_without_a_guess_proposes_nothing(make):
    drafter: Drafter = make()
    drafter.extend([1, 2])
    assert drafter.propose(3) == []


def test_computed_drafts_hold_until_the_sequence_goes_on():
    drafts = ComputedDrafts()
    drafts.offer([4, 5, 6])
    drafts.extend([])
    assert (drafts.propose(2), drafts.propose(9)) == ([4, 5], [4, 5, 6])
    drafts.extend([4])
    assert drafts.propose(9) == []

"""Prompt lookup against a naive search through the whole sequence."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasoning.drafts.ngram import NgramDrafts


def naive(tokens: list[int], longest: int, shortest: int, count: int) -> list[int]:
    """Copy on from the latest earlier place that reads like the end, in as many tokens as can be had."""
    for size in range(min(longest, len(tokens) - 1), shortest - 1, -1):
        for start in range(len(tokens) - size - 1, -1, -1):
            if tokens[start : start + size] == tokens[-size:]:
                extended = list(tokens)
                for place in range(start + size, start + size + count):
                    extended.append(extended[place])
                return extended[len(tokens) :]
    return []


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 3), st.integers(0, 2), st.data())
def test_it_proposes_what_a_naive_search_finds(tokens, shortest, more, data):
    longest, known = shortest + more, data.draw(st.integers(0, len(tokens)))
    drafts = NgramDrafts(tokens[:known], longest, shortest)
    for end in range(known, len(tokens)):
        assert drafts.propose(5) == naive(tokens[:end], longest, shortest, 5)
        drafts.extend([tokens[end]])
    assert drafts.propose(5) == naive(tokens, longest, shortest, 5)
    assert drafts.propose(2) == drafts.propose(5)[:2]


def test_the_longer_match_decides_and_then_the_later_one():
    drafts = NgramDrafts([1, 2, 3, 4, 9, 2, 3, 5, 8, 2, 3, 6, 7, 1, 2, 3])
    assert drafts.propose(2) == [4, 9]  # after 1 2 3
    drafts.extend([0, 2, 3])
    assert drafts.propose(3) == [0, 2, 3]  # after 2 3, the last time it was not the end


def test_drafts_of_a_loop_continue_the_loop():
    assert NgramDrafts([7, 1, 2, 1, 2]).propose(5) == [1, 2, 1, 2, 1]


def test_nothing_is_proposed_without_a_precedent():
    assert NgramDrafts().propose(3) == []
    assert NgramDrafts([1, 2, 3]).propose(3) == []
    assert NgramDrafts([1, 2, 1, 2]).propose(0) == []


def test_one_size_of_ngrams_costs_one_entry_a_token():
    assert len(NgramDrafts(range(1000), longest=4, shortest=2)._after) < 3 * 1000


@pytest.mark.parametrize(("longest", "shortest"), [(2, 3), (3, 0)])
def test_sizes_that_match_nothing_are_refused(longest, shortest):
    with pytest.raises(ValueError, match=rf"shortest: {shortest} is not from 1 to longest={longest}"):
        NgramDrafts([], longest, shortest)

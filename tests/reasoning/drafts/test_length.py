"""How many drafts are proposed follows from how many of the last ones were right."""

from __future__ import annotations

import pytest

from reasoning.drafts.length import DraftLength, DraftPolicy


@pytest.mark.parametrize(
    ("chance", "length"), [(0.0, 0), (0.29, 0), (0.31, 1), (0.54, 1), (0.56, 2), (0.7, 3), (0.9, 8), (1.0, 8)]
)
def test_a_draft_is_proposed_while_it_is_worth_its_price(chance, length):
    policy = DraftPolicy(longest=8, price=0.3)
    assert policy.length(chance) == length
    assert length == 8 or chance**length >= 0.3 > chance ** (length + 1)


def test_free_drafts_are_always_proposed():
    assert DraftPolicy(longest=5, free=2).length(0.0) == 2


def run(length: DraftLength, steps: int, right: bool) -> list[int]:
    proposed = []
    for _ in range(steps):
        proposed.append(length.length)
        length.record(length.length, length.length if right else 0)
    return proposed


def test_success_lengthens_and_failure_shortens():
    length = DraftLength(DraftPolicy(longest=4))
    assert length.length == 2
    up = run(length, 12, right=True)
    assert up == sorted(up)
    assert length.length == 4
    down = run(length, 7, right=False)
    assert down == sorted(down, reverse=True)
    assert length.length == 0


@pytest.mark.parametrize("price", [0.1, 0.4, 0.9])
def test_a_sequence_whose_drafts_fail_is_tried_again_but_seldom(price):
    length = DraftLength(DraftPolicy(longest=4, price=price))
    run(length, 100, right=False)
    tried = run(length, 200, right=False)
    assert set(tried) == {0, 1}
    assert sum(tried) * price < 0.05 * len(tried)


def test_drafts_after_the_first_wrong_one_say_nothing():
    one, many = DraftLength(DraftPolicy(longest=64, price=0.001)), DraftLength(DraftPolicy(longest=64, price=0.001))
    for _ in range(5):
        one.record(2, 1)
        many.record(9, 1)
    assert one.length == many.length


@pytest.mark.parametrize(
    ("field", "values"),
    [("free", {"free": 5}), ("free", {"free": -1}), ("price", {"price": 0.0}), ("price", {"price": 1.0})],
)
def test_a_policy_out_of_range_is_refused(field, values):
    with pytest.raises(ValueError, match=rf"{field}: .* use a "):
        DraftPolicy(**values)

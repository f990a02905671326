"""The order of sequences is a permutation in each epoch, and any position of it is found at once."""

from __future__ import annotations

import numpy as np
import pytest

from reasoning.corpora.order import SequenceOrder


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 16, 17, 1000, 4097])
def test_every_epoch_has_every_sequence_once(count):
    order = SequenceOrder(count, seed=3)
    for epoch in range(3):
        found = order.indices(epoch * count, (epoch + 1) * count)
        assert found.dtype == np.int64
        assert sorted(found.tolist()) == list(range(count))


def test_epochs_and_seeds_have_orders_of_their_own():
    order = SequenceOrder(1000)
    epochs = [order.indices(0, 1000), order.indices(1000, 2000), SequenceOrder(1000, seed=1).indices(0, 1000)]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert (epochs[first] == epochs[second]).sum() < 10  # a random pair agrees in one place on average


def test_a_run_that_resumes_at_a_position_continues_as_if_it_had_not_stopped():
    order = SequenceOrder(137, seed=5)
    whole = order.indices(0, 1000)
    parts = [SequenceOrder(137, seed=5).indices(begin, begin + 50) for begin in range(0, 1000, 50)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert order.indices(77, 77).shape == (0,)
    assert sorted(SequenceOrder(137).indices(137 * 10**12, 137 * (10**12 + 1)).tolist()) == list(range(137))


def test_the_order_is_stated_because_a_run_must_resume_with_later_releases():
    assert [SequenceOrder(10).indices(begin, begin + 10).tolist() for begin in (0, 10)] == [
        [0, 2, 8, 5, 9, 6, 3, 7, 1, 4],
        [1, 3, 4, 2, 0, 7, 5, 6, 9, 8],
    ]


def test_the_order_looks_random():
    """A permutation drawn evenly: neighbours are uncorrelated, and no position favours some sequences."""
    order = SequenceOrder(10000, seed=2).indices(0, 10000).astype(float)
    assert abs(np.corrcoef(order, np.arange(10000))[0, 1]) < 0.04
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.04
    first = np.concatenate([SequenceOrder(8, seed=seed).indices(0, 1) for seed in range(1600)])
    assert np.bincount(first, minlength=8) == pytest.approx([200] * 8, abs=60)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_the_ranks_share_the_batch_of_a_step_in_order(ranks):
    order = SequenceOrder(50, seed=1)
    for step in (0, 3, 11):
        shares = [order.rank_indices(step, 12, rank, ranks) for rank in range(ranks)]
        assert [len(share) for share in shares] == [12 // ranks] * ranks
        np.testing.assert_array_equal(np.concatenate(shares), order.indices(step * 12, step * 12 + 12))


def test_what_cannot_be_ordered_or_shared_is_refused():
    order = SequenceOrder(50)
    with pytest.raises(ValueError, match="batch: 10 sequences do not divide among 4 ranks; use a multiple of 4"):
        order.rank_indices(0, 10, 0, 4)
    with pytest.raises(ValueError, match="rank=4, step=0"):
        order.rank_indices(0, 8, 4, 4)
    with pytest.raises(ValueError, match="begin=5, end=4"):
        order.indices(5, 4)
    with pytest.raises(ValueError, match="count: 0 sequences cannot be ordered"):
        SequenceOrder(0)
    with pytest.raises(ValueError, match="seed: -1"):
        SequenceOrder(5, seed=-1)

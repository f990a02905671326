"""The page pool: nothing is lost, held twice by mistake, or forgotten while there is room."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from reasoning.scheduling.pages import PagePool, page_digest


def digest(number):
    return page_digest(b"", [number])


def test_a_page_is_named_by_its_tokens_and_all_before_it():
    assert page_digest(b"", [1, 2]) == page_digest(b"", (1, 2))
    assert len({page_digest(b"", [1, 2]), page_digest(b"", [2, 1]), page_digest(digest(1), [1, 2])}) == 3


def test_released_pages_are_found_until_they_are_needed():
    pool = PagePool(3)
    pages = [pool.take() for _ in range(3)]
    for number, page in enumerate(pages):
        pool.name(page, digest(number))
    pool.release(pages)
    assert pool.available == 3
    assert pool.find(digest(0)) == pages[0]
    assert pool.available == 2
    assert pool.take() == pages[2]  # the end of what was released goes first
    assert (pool.find(digest(2)), pool.find(digest(1))) == (None, pages[1])
    with pytest.raises(IndexError, match="no page is available"):
        pool.take()


def test_a_shared_page_is_held_until_the_last_lets_go():
    pool = PagePool(2)
    page = pool.take()
    pool.name(page, digest(1))
    assert pool.find(digest(1)) == page
    pool.release([page])
    assert pool.available == 1
    pool.release([page])
    assert pool.available == 2


def test_a_pool_that_keeps_nothing_finds_nothing():
    pool = PagePool(2, keep=False)
    page = pool.take()
    pool.name(page, digest(1))
    pool.release([page])
    assert pool.find(digest(1)) is None
    pool.check_integrity([])


def test_integrity_sees_a_leak_and_a_double_hold():
    pool = PagePool(2)
    page = pool.take()
    pool.check_integrity([[page]])
    for wrong in ([], [[page], [page]]):
        with pytest.raises(AssertionError, match="leaks"):
            pool.check_integrity(wrong)


class Holders(RuleBasedStateMachine):
    """Sequences that take, share, name and release pages in any order."""

    @initialize(size=st.integers(1, 6))
    def begin(self, size):
        self.pool, self.held, self.content, self.next = PagePool(size), [], {}, 0

    @precondition(lambda self: self.pool.available)
    @rule(named=st.booleans())
    def take(self, named):
        page = self.pool.take()
        self.content.pop(page, None)
        if named:
            self.pool.name(page, digest(self.next))
            self.content[page] = self.next
            self.next += 1
        self.held.append([page])

    @precondition(lambda self: self.content)
    @rule(data=st.data())
    def share(self, data):
        page, number = data.draw(st.sampled_from(sorted(self.content.items())))
        assert self.pool.find(digest(number)) == page
        self.held.append([page])

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data):
        self.pool.release(self.held.pop(data.draw(st.integers(0, len(self.held) - 1))))

    @rule(number=st.integers(0, 30))
    def a_name_finds_its_content_or_nothing(self, number):
        page = self.pool.find(digest(number))
        assert page is None or self.content[page] == number
        assert page is not None or number not in self.content.values()
        if page is not None:
            self.pool.release([page])

    @invariant()
    def nothing_leaks(self):
        self.pool.check_integrity(self.held)


TestHolders = Holders.TestCase
TestHolders.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)

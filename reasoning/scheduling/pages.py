"""The pages of the cache: who holds them, and which prefix those that nobody holds still keep."""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b


def page_digest(before: bytes, tokens: Sequence[int]) -> bytes:
    """Name a full page by its tokens and, through the digest of the page `before` it, by all earlier ones.

    What the cache keeps of a position follows from the tokens up to it and nothing else, Engram rows and the
    convolution's input included: equal digests, equal pages.
    """
    return blake2b(before + array("q", tokens).tobytes(), digest_size=16).digest()


class PagePool:
    """A fixed number of pages. Each is free, held by sequences, or kept: held by nobody, but its content has a name.

    Kept pages count as available: the one released longest ago is given away first.
    """

    def __init__(self, pages: int, keep: bool = True):
        """`keep` False forgets what a page held as soon as nobody holds it, and shares nothing."""
        self.size, self._keep = pages, keep
        self._holders = [0] * pages
        self._free = list(reversed(range(pages)))
        self._kept: OrderedDict[int, None] = OrderedDict()
        self._digests: dict[int, bytes] = {}
        self._pages: dict[bytes, int] = {}

    @property
    def available(self) -> int:
        """Pages that `take` can still give."""
        return len(self._free) + len(self._kept)

    def take(self) -> int:
        """Return a page without content, held once; IndexError when none is available."""
        if self._free:
            page = self._free.pop()
        elif self._kept:
            page, _ = self._kept.popitem(last=False)
            del self._pages[self._digests.pop(page)]
        else:
            raise IndexError("no page is available")
        self._holders[page] = 1
        return page

    def find(self, digest: bytes) -> int | None:
        """Return the page of that content, held once more; None if there is none."""
        page = self._pages.get(digest)
        if page is not None:
            self._kept.pop(page, None)
            self._holders[page] += 1
        return page

    def name(self, page: int, digest: bytes) -> None:
        """Let a held page, now full, be found by its content. Of pages with equal content the first is found."""
        if self._keep and digest not in self._pages:
            self._pages[digest], self._digests[page] = page, digest

    def release(self, pages: Iterable[int]) -> None:
        """Let go of pages, the first of a sequence first: its end is given away before its beginning."""
        for page in reversed(list(pages)):
            self._holders[page] -= 1
            if self._holders[page] == 0:
                if page in self._digests:
                    self._kept[page] = None
                else:
                    self._free.append(page)

    def check_integrity(self, held: Iterable[Sequence[int]]) -> None:
        """Raise AssertionError unless every page is where it belongs.

        Args:
            held: the pages of each sequence there is.
        """
        count = Counter(page for pages in held for page in pages)
        assert all(self._holders[page] == count[page] for page in range(self.size)), "a page leaks or is held unseen"
        idle = self._free + list(self._kept)
        assert sorted((*idle, *count)) == list(range(self.size)), "a page is lost, or held and available"
        assert {page: digest for digest, page in self._pages.items()} == self._digests, "names do not fit their pages"
        assert set(self._kept) == set(self._digests) - set(count), "a page is kept without a name, or not kept with one"

"""The pages of the cache: which sequences hold them, and which released pages still hold a known prefix."""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b


def page_digest(before: bytes, tokens: Sequence[int]) -> bytes:
    """Return the digest of a full page: of its tokens and, by the digest of the page `before` it, all earlier ones.

    The cached content of a position follows from the tokens up to it and nothing else, Engram rows and the
    convolution's input included. So pages with equal digests have equal content.
    """
    return blake2b(before + array("q", tokens).tobytes(), digest_size=16).digest()


class PagePool:
    """A fixed number of pages. Each is free, held by sequences, or kept: released, but findable by its digest.

    Kept pages count as available: the least recently released one is reused first.
    """

    def __init__(self, pages: int, keep: bool = True):
        """Make `pages` free pages; with `keep` False pages are neither kept after their release nor shared."""
        self.size, self._keep = pages, keep
        self._holders = [0] * pages
        self._free = list(reversed(range(pages)))
        self._kept: OrderedDict[int, None] = OrderedDict()
        self._digests: dict[int, bytes] = {}
        self._pages: dict[bytes, int] = {}

    @property
    def available(self) -> int:
        """Number of pages that `take` can still return."""
        return len(self._free) + len(self._kept)

    def take(self) -> int:
        """Return a page without content, held once.

        Raises:
            IndexError: no page is available.
        """
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
        """Return the page with this digest and hold it once more; None if there is none."""
        page = self._pages.get(digest)
        if page is not None:
            self._kept.pop(page, None)
            self._holders[page] += 1
        return page

    def name(self, page: int, digest: bytes) -> None:
        """Make a held page, now full, findable by its digest. Of pages with equal content the first is found."""
        if self._keep and digest not in self._pages:
            self._pages[digest], self._digests[page] = page, digest

    def release(self, pages: Iterable[int]) -> None:
        """Release the pages of a sequence, given in order; its last page will be reused before its first."""
        for page in reversed(list(pages)):
            self._holders[page] -= 1
            if self._holders[page] == 0:
                if page in self._digests:
                    self._kept[page] = None
                else:
                    self._free.append(page)

    def check_integrity(self, held: Iterable[Sequence[int]]) -> None:
        """Check that every page is free, kept or held, exactly once, and that digests match.

        Args:
            held: the pages of each live sequence.

        Raises:
            AssertionError: they are not.
        """
        count = Counter(page for pages in held for page in pages)
        assert all(self._holders[page] == count[page] for page in range(self.size)), "a page leaks"
        idle = self._free + list(self._kept)
        assert sorted((*idle, *count)) == list(range(self.size)), "a page is lost, or held and available"
        assert {page: digest for digest, page in self._pages.items()} == self._digests, "names do not fit their pages"
        assert set(self._kept) == set(self._digests) - set(count), "a page is kept without a name, or not kept with one"

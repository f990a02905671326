"""What the scheduler moves about: sequences, pieces of them, and the fetches that bring the rows of pieces."""

from __future__ import annotations

from dataclasses import dataclass, field

from reasoning.engram.row_lookup import PendingRows
from reasoning.model.batch import PAGE_TOKENS, pages_for
from reasoning.request import Request
from reasoning.sampling.sampler import Sampler
from reasoning.scheduling.pages import PagePool, page_digest


class Sequence:
    """One sample of a request on its way: its tokens so far, and what the cache holds of them."""

    def __init__(self, request: Request, prompt: list[int], limit: int, order: int, first: Sequence | None = None):
        """Begin with nothing cached.

        Args:
            request: what it belongs to.
            prompt: its first tokens.
            limit: tokens at which it ends, the prompt included.
            order: the lower, the longer it has been here.
            first: the request's first sample, when this is a further one.
        """
        self.request, self.order, self.limit, self.first = request, order, limit, first
        self.index = 0 if first is None else order - first.order
        self.token_ids, self.prompt_tokens = list(prompt), len(prompt)
        self.sampler = Sampler(request.sampling, prompt, self.index)
        self.started = False
        """Whether it has its place among those that run together."""
        self.ended = False
        self.cohort = 0
        self.pieces: list[Piece] = []
        """In flight, in order."""
        self.pages: list[int] = []
        self.num_cached = 0
        self.reused_tokens = 0
        """Prompt tokens found in the cache."""
        self._digest, self._named = b"", 0

    @property
    def new_tokens(self) -> list[int]:
        """Tokens generated so far."""
        return self.token_ids[self.prompt_tokens :]

    @property
    def requested(self) -> int:
        """Tokens that are cached or have their rows on the way."""
        return self.pieces[-1].end if self.pieces else self.num_cached

    @property
    def decoding(self) -> bool:
        """Whether it has its place and all but its last token in the cache."""
        return self.started and self.num_cached == len(self.token_ids) - 1

    @property
    def past_prompt(self) -> bool:
        """Whether its prompt is cached, or will not be."""
        return self.ended or self.num_cached >= self.prompt_tokens

    def history(self, start: int, length: int) -> list[int]:
        """Return the last `length` tokens before `start`, fewer at the beginning."""
        return self.token_ids[max(0, start - length) : start]

    def share_prefix(self, pool: PagePool) -> bool:
        """Hold the pages that others have filled with this sequence's next tokens; whether there were any.

        The last token is left to compute: somebody wants its logits.
        """
        before = self.num_cached
        while self.num_cached + PAGE_TOKENS < len(self.token_ids):
            digest = self._next_digest()
            page = pool.find(digest)
            if page is None:
                break
            self.pages.append(page)
            self._digest, self._named = digest, self._named + 1
            self.num_cached += PAGE_TOKENS
        if not self.new_tokens:
            self.reused_tokens = self.num_cached
        return self.num_cached > before

    def name_pages(self, pool: PagePool) -> None:
        """Let others find the pages that are full."""
        while (self._named + 1) * PAGE_TOKENS <= self.num_cached:
            self._digest = self._next_digest()
            pool.name(self.pages[self._named], self._digest)
            self._named += 1

    def _next_digest(self) -> bytes:
        begin = self._named * PAGE_TOKENS
        return page_digest(self._digest, self.token_ids[begin : begin + PAGE_TOKENS])

    def drop_pieces(self) -> None:
        """Forget what is in flight."""
        for piece in self.pieces:
            piece.live = False
        self.pieces.clear()

    def drop(self, pool: PagePool) -> None:
        """Forget what is in flight and let go of the cache; the tokens stay."""
        self.drop_pieces()
        pool.release(self.pages)
        self.pages, self.num_cached, self.started = [], 0, False
        self._digest, self._named = b"", 0

    def check_integrity(self) -> None:
        """Raise AssertionError unless what is cached and what is in flight follow each other."""
        at = self.num_cached
        for piece in self.pieces:
            assert piece.live, "a dead piece is kept"
            assert piece.start == at, "pieces leave a gap"
            at = piece.end
        assert self.num_cached < len(self.token_ids) <= self.limit, "more is cached than known"
        assert len(self.pages) >= pages_for(self.num_cached), "tokens are cached outside of pages"
        drafts = self.pieces[-1].drafts if self.pieces else 0
        assert at - drafts <= len(self.token_ids), "tokens are in flight that nobody knows"


@dataclass(eq=False)
class Piece:
    """The next tokens of a sequence: a chunk of its prompt, or its last token and drafts of those to come."""

    sequence: Sequence
    start: int
    """Position of its first token."""
    token_ids: list[int]
    drafts: int = 0
    """How many of the tokens, at the end, are guesses."""
    live: bool = True
    """False once the sequence has no use for it any more."""
    fetch: Fetch = field(init=False)
    """The lookup that brings its rows."""
    offset: int = field(init=False)
    """Where it begins among the lookup's positions."""

    @property
    def end(self) -> int:
        """Position after its last token."""
        return self.start + len(self.token_ids)

    @property
    def final(self) -> bool:
        """Whether it ends with all that is known of the sequence, so that its next token is chosen after it."""
        return self.end - self.drafts == len(self.sequence.token_ids)


class Fetch:
    """One lookup, of the rows of one or more pieces."""

    def __init__(self, pieces: list[Piece], rows: PendingRows | None):
        """`rows` is None for a model without a memory."""
        self.pieces, self.rows = pieces, rows
        offset = 0
        for piece in pieces:
            piece.fetch, piece.offset = self, offset
            offset += len(piece.token_ids)

    @property
    def live(self) -> list[Piece]:
        """The pieces that are still of use."""
        return [piece for piece in self.pieces if piece.live]

    @property
    def landed(self) -> bool:
        """Whether the first layer that needs rows need not wait for them."""
        return self.rows is None or self.rows.landed

    def wait(self) -> None:
        """Wait until no layer would have to."""
        if self.rows is not None:
            self.rows.wait_all()

"""What the scheduler works with: sequences, pieces of their tokens, and the fetches that bring the rows of pieces."""

from __future__ import annotations

from dataclasses import dataclass, field

from reasoning.engram.row_lookup import PendingRows
from reasoning.model.batch import PAGE_TOKENS, pages_for
from reasoning.request import Request
from reasoning.sampling.sampler import Sampler
from reasoning.scheduling.pages import PagePool, page_digest


class Sequence:
    """One sample of a request: its tokens so far, and how far they are cached."""

    def __init__(self, request: Request, prompt: list[int], limit: int, order: int, first: Sequence | None = None):
        """Begin with nothing cached.

        Args:
            request: the request that the sample belongs to.
            prompt: its first tokens.
            limit: number of tokens at which it ends, including the prompt.
            order: its place in the order of arrival.
            first: the request's first sample; None if this is the first.
        """
        self.request, self.order, self.limit, self.first = request, order, limit, first
        self.index = 0 if first is None else order - first.order
        self.token_ids, self.prompt_tokens = list(prompt), len(prompt)
        self.sampler = Sampler(request.sampling, prompt, self.index)
        self.started = False
        """Whether it is one of the sequences that run together."""
        self.ended = False
        self.cohort = 0
        self.pieces: list[Piece] = []
        """Pieces whose rows were requested and that have not run, in order."""
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
        """Number of tokens that are cached or whose rows were requested."""
        return self.pieces[-1].end if self.pieces else self.num_cached

    @property
    def decoding(self) -> bool:
        """Whether it is started and all but its last token are cached."""
        return self.started and self.num_cached == len(self.token_ids) - 1

    @property
    def past_prompt(self) -> bool:
        """Whether its prompt is cached, or will never be."""
        return self.ended or self.num_cached >= self.prompt_tokens

    def history(self, start: int, length: int) -> list[int]:
        """Return the last `length` tokens before `start`, fewer at the beginning."""
        return self.token_ids[max(0, start - length) : start]

    def share_prefix(self, pool: PagePool) -> bool:
        """Hold the pages that other sequences have filled with this one's next tokens; returns whether there were any.

        The last token is always computed, because its logits are needed.
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
        """Make the pages that are full findable by other sequences."""
        while (self._named + 1) * PAGE_TOKENS <= self.num_cached:
            self._digest = self._next_digest()
            pool.name(self.pages[self._named], self._digest)
            self._named += 1

    def _next_digest(self) -> bytes:
        begin = self._named * PAGE_TOKENS
        return page_digest(self._digest, self.token_ids[begin : begin + PAGE_TOKENS])

    def drop_pieces(self) -> None:
        """Drop all pieces."""
        for piece in self.pieces:
            piece.live = False
        self.pieces.clear()

    def drop(self, pool: PagePool) -> None:
        """Drop all pieces and release the pages; the tokens stay."""
        self.drop_pieces()
        pool.release(self.pages)
        self.pages, self.num_cached, self.started = [], 0, False
        self._digest, self._named = b"", 0

    def check_integrity(self) -> None:
        """Check that cached tokens and pieces are adjacent.

        Raises:
            AssertionError: they are not.
        """
        at = self.num_cached
        for piece in self.pieces:
            assert piece.live, "a dead piece is kept"
            assert piece.start == at, "pieces leave a gap"
            at = piece.end
        assert self.num_cached < len(self.token_ids) <= self.limit, "more is cached than known"
        assert len(self.pages) >= pages_for(self.num_cached), "tokens are cached outside of pages"
        drafts = self.pieces[-1].drafts if self.pieces else 0
        assert at - drafts <= len(self.token_ids), "a piece has tokens that the sequence lacks"


@dataclass(eq=False)
class Piece:
    """The next tokens of a sequence: a chunk of its prompt, or its last token and drafts of those to come."""

    sequence: Sequence
    start: int
    """Position of its first token."""
    token_ids: list[int]
    drafts: int = 0
    """How many of the tokens, at the end, are drafts."""
    live: bool = True
    """False once the piece has run or its sequence dropped it."""
    fetch: Fetch = field(init=False)
    """The lookup that brings its rows."""
    offset: int = field(init=False)
    """Index of its first token among the lookup's positions."""

    @property
    def end(self) -> int:
        """Position after its last token."""
        return self.start + len(self.token_ids)

    @property
    def final(self) -> bool:
        """Whether it ends with the sequence's last known token, so that the next token is chosen from its logits."""
        return self.end - self.drafts == len(self.sequence.token_ids)


class Fetch:
    """One lookup: the rows of one or more pieces."""

    def __init__(self, pieces: list[Piece], rows: PendingRows | None):
        """Tie pieces to their rows, which are None for a model without a memory."""
        self.pieces, self.rows = pieces, rows
        offset = 0
        for piece in pieces:
            piece.fetch, piece.offset = self, offset
            offset += len(piece.token_ids)

    @property
    def live(self) -> list[Piece]:
        """The pieces that are still needed."""
        return [piece for piece in self.pieces if piece.live]

    @property
    def landed(self) -> bool:
        """Whether the first Engram layer can run without waiting."""
        return self.rows is None or self.rows.landed

    def wait(self) -> None:
        """Wait until the rows of all layers have landed, failed or are overdue."""
        if self.rows is not None:
            self.rows.wait_all()

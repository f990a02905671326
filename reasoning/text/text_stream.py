"""Text of one sample as its tokens arrive, up to a stop text."""

from __future__ import annotations

from collections.abc import Sequence

from reasoning.text.tokenizer import Tokenizer

_UNKNOWN = "\ufffd"
_PATIENCE = 16
"""Tokens to wait for the end of a character, which has four bytes at most: so many that do not end one are no text."""


class Detokenizer:
    """Decodes token by token, from the last whole character on, so that a token costs the same however long the text.

    `tokenizers.decoders.DecodeStream` does this too, but does not hand out what is incomplete when a text ends, never
    gives up on bytes that are no character, and raises where byte-fallback tokens turn out to be none.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []  # those of the last whole characters, which decide on spaces, and what came since
        self._whole = 0  # how many of them belong to whole characters
        self._given = 0  # length of their text, all of which has been returned

    def feed(self, token_id: int) -> str:
        """Return the characters that the token completes."""
        if not self._tokenizer.has_text(token_id):
            return ""
        self._ids.append(token_id)
        text = self._tokenizer.decode(self._ids)
        if text.endswith(_UNKNOWN) and len(self._ids) - self._whole < _PATIENCE:
            return ""
        new = text[self._given :]
        if new:  # the tokens that brought it suffice as context for the next
            self._ids = self._ids[self._whole :]
            self._given = len(self._tokenizer.decode(self._ids))
        self._whole = len(self._ids)
        return new

    def finish(self) -> str:
        """Return what is left, an incomplete character as U+FFFD."""
        return self._tokenizer.decode(self._ids)[self._given :]


class TextStream:
    """Turns tokens into final text: what a later token could still change, or take back as a stop text, is held."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self.stopped = False
        """Whether a stop text has come. The text ends before it, and tokens that follow are no part of it."""
        self._detokenizer = Detokenizer(tokenizer)
        self._stop = tuple(stop)
        self._held = ""

    def feed(self, token_id: int) -> str:
        """Take the next token; return the text that has become final."""
        assert not self.stopped, f"token {token_id} after a stop text"
        return self._release(self._detokenizer.feed(token_id))

    def finish(self) -> str:
        """Return the rest of the text: no token follows."""
        if self.stopped:
            return ""
        return self._release(self._detokenizer.finish()) + self._take(len(self._held))

    def _release(self, new: str) -> str:
        self._held += new
        ends = [(start + len(text), start) for text in self._stop if (start := self._held.find(text)) >= 0]
        if not ends:
            return self._take(min((_possible_start(self._held, text) for text in self._stop), default=len(self._held)))
        self.stopped = True
        _, start = min(ends)  # the one that was complete first, however the text was cut into tokens
        before, self._held = self._held[:start], ""
        return before

    def _take(self, count: int) -> str:
        taken, self._held = self._held[:count], self._held[count:]
        return taken


def _possible_start(text: str, stop: str) -> int:
    """Where in `text` the stop text may have begun; its length if nowhere."""
    start = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while start >= 0 and not stop.startswith(text[start:]):
        start = text.find(stop[0], start + 1)
    return start if start >= 0 else len(text)

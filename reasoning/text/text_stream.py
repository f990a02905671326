"""Streaming text of a sample, up to a stop text."""

from __future__ import annotations

from collections.abc import Sequence

from reasoning.text.detokenizer import detokenizer
from reasoning.text.tokenizer import Tokenizer


class TextStream:
    """Turns the tokens of a sample into text as they arrive, and returns only final text.

    Text is held back while a later token may complete a character, or a stop text that is to be cut.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str] = (),
        include_stop: bool = False,
        skip_special_tokens: bool = True,
    ) -> None:
        """Begin an empty text.

        Args:
            tokenizer: decodes the tokens.
            stop: stop texts. The first to be complete ends the text, however the text was cut into tokens; among stop
                texts that are complete at the same character, the longest.
            include_stop: end the text after the stop text instead of before it.
            skip_special_tokens: leave out the text of special tokens.
        """
        self.stopped = False
        """Whether a stop text has ended the text."""
        self._detokenizer = detokenizer(tokenizer, skip_special_tokens)
        self._stop, self._include = tuple(stop), include_stop
        self._recent = ""  # final text that may contain the beginning of a stop text
        self._given = 0  # number of its characters that have been returned

    def feed(self, token_id: int) -> str:
        """Take the next token; return the text that has become final."""
        assert not self.stopped, f"token {token_id} after a stop text"
        self._recent += self._detokenizer.feed(token_id)
        return self._release(self._detokenizer.open)

    def finish(self) -> str:
        """Return the rest of the text at the end of the sample."""
        if self.stopped:
            return ""
        self._recent += self._detokenizer.finish()
        return self._release() + self._recent[self._given :]

    def _release(self, open_text: str = "") -> str:
        text = self._recent + open_text  # a stop text in it ends the sample, so that it cannot change any more
        ends = [(start + len(stop), start) for stop in self._stop if (start := text.find(stop)) >= 0]
        if ends:
            self.stopped = True
            end, start = min(ends)
            last = text[self._given : end if self._include else start]
            self._recent, self._given = "", 0
            return last
        final = len(self._recent)
        start = min([final, *(_possible_start(text, stop) for stop in self._stop)])
        until = final if self._include else start
        released = self._recent[self._given : until]
        self._recent, self._given = self._recent[start:], until - start
        return released


def _possible_start(text: str, stop: str) -> int:
    """Return the position in `text` where the stop text may begin; the length of `text` if nowhere."""
    start = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while start >= 0 and not stop.startswith(text[start:]):
        start = text.find(stop[0], start + 1)
    return start if start >= 0 else len(text)

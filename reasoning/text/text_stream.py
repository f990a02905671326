"""Text of one sample as its tokens arrive, up to a stop text."""

from __future__ import annotations

from collections.abc import Sequence

from reasoning.text.detokenizer import detokenizer
from reasoning.text.tokenizer import Tokenizer


class TextStream:
    """Turns the tokens of one sample into text, of which only what is final is handed out.

    A later token can still complete a character, or complete a stop text, which is no part of the text.
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
            stop: texts that end the text. The one that is complete first counts, however the text was cut into
                tokens; of several that are complete at once, the longest.
            include_stop: end the text after the stop text instead of before it.
            skip_special_tokens: leave out the text of special tokens.
        """
        self.stopped = False
        """Whether a stop text has come. Tokens that follow are no part of the text."""
        self._detokenizer = detokenizer(tokenizer, skip_special_tokens)
        self._stop, self._include = tuple(stop), include_stop
        self._recent = ""  # final text that may be the beginning of a stop text
        self._given = 0  # how many characters of it have been handed out

    def feed(self, token_id: int) -> str:
        """Take the next token; return the text that has become final."""
        assert not self.stopped, f"token {token_id} after a stop text"
        self._recent += self._detokenizer.feed(token_id)
        return self._release(self._detokenizer.open)

    def finish(self) -> str:
        """Return the rest of the text: no token follows."""
        if self.stopped:
            return ""
        self._recent += self._detokenizer.finish()
        return self._release() + self._recent[self._given :]

    def _release(self, open_text: str = "") -> str:
        text = self._recent + open_text  # if this completes a stop text, the sample ends here and all of it is final
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
    """Where in `text` the stop text may have begun; its length if nowhere."""
    start = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while start >= 0 and not stop.startswith(text[start:]):
        start = text.find(stop[0], start + 1)
    return start if start >= 0 else len(text)

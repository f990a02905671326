"""Text of one sample as its tokens arrive, up to a stop text."""

from __future__ import annotations

from collections.abc import Sequence

from reasoning.tokenizer import Tokenizer

_UNKNOWN = "\ufffd"
_LONGEST_CHARACTER = 4
"""Bytes of a UTF-8 character, and so tokens that it can be spread over, at most."""


class TextStream:
    """Turns tokens into final text: what a later token could still change or take back is held until it cannot."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self.stopped = False

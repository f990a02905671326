"""Token ids back to text as they arrive, in pieces that make up what all ids decode to together."""

from __future__ import annotations

import codecs
import json
import re
from typing import Any, Protocol

from reasoning.text.tokenizer import Tokenizer

_UNKNOWN = "\ufffd"
_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")
_VISIBLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_HIDDEN = sorted(set(range(256)) - set(_VISIBLE))
_BYTES = {chr(byte): byte for byte in _VISIBLE} | {chr(0x100 + n): byte for n, byte in enumerate(_HIDDEN)}
"""Character of a byte-level vocabulary -> the byte that it stands for, as GPT-2 defines it."""


class Detokenizer(Protocol):
    """Decodes one sequence token by token.

    What `feed` has returned so far, and `finish` returns next, is always what `Tokenizer.decode` makes of the tokens so
    far. So `feed` may return only characters that no further token can change.
    """

    @property
    def open(self) -> str:
        """Text of whole characters that a further token may still change, and that stays if none follows."""

    def feed(self, token_id: int) -> str:
        """Take the next token; return the characters that have become final."""

    def finish(self) -> str:
        """Return the rest of the text: no token follows. An incomplete character becomes U+FFFD."""


def detokenizer(tokenizer: Tokenizer, skip_special_tokens: bool = True) -> Detokenizer:
    """Return the detokenizer for one sequence, with or without the text of special tokens.

    `tokenizers.decoders.DecodeStream` will not do: it does not hand out what is incomplete when a text ends, waits for
    ever for bytes that complete no character, and fails where byte-fallback tokens turn out to be none.
    """
    steps = _steps(tokenizer.backend.decoder)
    if [step for step in steps if step != "Fuse"] == ["ByteLevel"]:
        return _ByteText(tokenizer, skip_special_tokens)
    return _PieceText(tokenizer, skip_special_tokens, "ByteLevel" in steps)


def _steps(decoder: Any) -> list[str]:
    """Return the types of a decoder's steps in order."""
    return [] if decoder is None else _types(json.loads(decoder.__getstate__()))


def _types(state: dict[str, Any]) -> list[str]:
    steps = state.get("decoders")
    return [state["type"]] if steps is None else [name for step in steps for name in _types(step)]


class _ByteText:
    """Text of a byte-level vocabulary, whose tokens are byte strings: a UTF-8 decoder knows what is final."""

    open = ""

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool) -> None:
        self._tokenizer, self._skip = tokenizer, skip_special_tokens
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token_id: int) -> str:
        token = self._tokenizer.text_token(token_id, self._skip)
        return "" if token is None else self._utf8.decode(_bytes_of(token))

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)


def _bytes_of(token: str) -> bytes:
    """Return what a byte-level token stands for; tokens that were added to the vocabulary are plain text."""
    found = [_BYTES.get(character) for character in token]
    return token.encode() if None in found else bytes(found)  # type: ignore[arg-type]


class _PieceText:
    """Text of a vocabulary of pieces, such as SentencePiece's.

    A decoder treats the first piece of a text in a way of its own, for example without its leading space; so the last
    piece, whose text has been returned, is decoded again before the next. Pieces are final by themselves, except
    tokens like <0xE2> for one byte: consecutive ones are characters only if all of them together are valid UTF-8, and
    U+FFFD each if not. They wait until another piece ends the run.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool, joins_bytes: bool) -> None:
        """Begin; if the decoder `joins_bytes` in a byte-level step too, any piece may be part of a character."""
        self._tokenizer, self._skip, self._joins_bytes = tokenizer, skip_special_tokens, joins_bytes
        self._last: list[int] = []  # the last piece that is final, none at the beginning
        self._run: list[int] = []  # tokens after it
        self._start_run()

    def _start_run(self) -> None:
        self._run = []
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._valid, self.open = True, ""

    def feed(self, token_id: int) -> str:
        token = self._tokenizer.text_token(token_id, self._skip)
        if not token:
            return ""
        self._run.append(token_id)
        byte = _BYTE_TOKEN.fullmatch(token)
        if byte is not None:
            self._extend_open(bytes.fromhex(byte[1]))
            return ""
        text = self._rest()
        if self._joins_bytes and text.endswith(_UNKNOWN):
            return ""
        self._last = [token_id]
        self._start_run()
        return text

    def finish(self) -> str:
        return self._rest()

    def _rest(self) -> str:
        return self._decode(self._last + self._run)[len(self._decode(self._last)) :]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, self._skip)

    def _extend_open(self, byte: bytes) -> None:
        if not self._valid:
            return
        try:
            text = self._utf8.decode(byte)
        except UnicodeDecodeError:
            self._valid, self.open = False, ""
            return
        if text and not self._last and len(self._run) == 1:
            text = self._decode(self._run)  # without the space that a decoder may remove at the beginning of a text
        self.open += text

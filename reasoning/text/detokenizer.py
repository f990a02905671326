"""Incremental decoding: token ids to text as they arrive, equal to decoding all ids at once."""

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

    Invariant: after any token, the text that `feed` has returned so far plus the text that `finish` would return equals
    `Tokenizer.decode` of all tokens so far. So `feed` returns only characters that no further token can change.
    """

    @property
    def open(self) -> str:
        """Complete characters that `feed` holds back because further tokens may change them."""

    def feed(self, token_id: int) -> str:
        """Take the next token; return the characters that have become final."""

    def finish(self) -> str:
        """Return the rest of the text at the end of the sequence. An incomplete character becomes U+FFFD."""


def detokenizer(tokenizer: Tokenizer, skip_special_tokens: bool = True) -> Detokenizer:
    """Return the detokenizer for one sequence, with or without the text of special tokens.

    `tokenizers.decoders.DecodeStream` does not keep the invariant: it drops an incomplete character at the end, waits
    forever for bytes that never complete a character, and raises on invalid byte-fallback tokens.
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
    """Text of a byte-level vocabulary: its tokens are bytes, so an incremental UTF-8 decoder keeps the invariant."""

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
    """Return the bytes of a byte-level token. Tokens that were added to the vocabulary are plain text."""
    found = [_BYTES.get(character) for character in token]
    return token.encode() if None in found else bytes(found)  # type: ignore[arg-type]


class _PieceText:
    """Text of a vocabulary of pieces, such as SentencePiece's.

    Decoders treat the first piece of a text specially, for example drop its leading space, so each piece is decoded
    together with the piece before it, whose text has been returned. Pieces are final at once, except byte tokens such
    as <0xE2>: a run of byte tokens decodes to characters if the whole run is valid UTF-8, and to U+FFFD for each byte
    if not. So the text of a run is held back until another piece ends the run.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool, joins_bytes: bool) -> None:
        """Begin an empty text; if the decoder `joins_bytes` of pieces, any piece may be part of a character."""
        self._tokenizer, self._skip, self._joins_bytes = tokenizer, skip_special_tokens, joins_bytes
        self._last: list[int] = []  # the last final piece that is not empty; nothing at the beginning
        self._run: list[int] = []  # tokens after the last final piece
        self._start_run()

    def _start_run(self) -> None:
        self._run = []
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._valid, self.open = True, ""

    def feed(self, token_id: int) -> str:
        token = self._tokenizer.text_token(token_id, self._skip)
        if token is None:
            return ""
        self._run.append(token_id)
        byte = _BYTE_TOKEN.fullmatch(token)
        if byte is not None:
            self._extend_open(bytes.fromhex(byte[1]))
            return ""
        text = self._rest()
        if self._joins_bytes and text.endswith(_UNKNOWN):
            return ""
        self._last = [token_id] if token else [*self._last, token_id]  # an empty piece does not begin a text
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
            text = self._decode(self._run)  # decoders may drop a space at the beginning of a text
        self.open += text

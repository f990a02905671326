"""Small tokenizers of the kinds that models have, for tests of what becomes of token ids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from reasoning.text.tokenizer import Tokenizer

END = 260
"""The special token of all tokenizers made here."""
_WORDS = [
    "ab",
    "the",
    "a",
    "##b",
    "##c",
    "b</w>",
    "▁Hello",
    "▁world",
    "s",
    "▁",
    "▁▁",
    "�",
    "▁�",
    "é",
    "😀",
    ".",
    "'t",
    "<0x41>",
    "",
]


def byte_level(decoder: decoders.Decoder | None = None) -> Tokenizer:
    """One token a byte, by its value; three words, a plain added token, and a special token `END`."""
    names = [_byte_name(byte) for byte in range(256)]
    assert sorted(names) == sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {name: byte for byte, name in enumerate(names)} | {"ab": 256, "Ġthe": 257, "Ã©a": 258}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    backend.decoder = decoder or decoders.ByteLevel()
    backend.add_tokens(["<plain é ▁>"])
    return _with_end(backend)


def _byte_name(byte: int) -> str:
    """The character that stands for a byte: itself where it can be seen, else one of U+0100 and up, in order."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return chr(byte) if byte in seen else chr(0x100 + sum(other not in seen for other in range(byte)))


def byte_fallback(*last: decoders.Decoder, empty: bool = True) -> Tokenizer:
    """A vocabulary as SentencePiece makes it: bytes as <0x41>, by their value, ▁ for spaces, perhaps an empty piece."""
    pieces = [*(f"<0x{byte:02X}>" for byte in range(256)), "▁Hello", "▁world", "s", "▁", "<end>", "�", "▁�", "é", "▁▁"]
    pieces += [""] * empty
    backend = tokenizers.Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *last])
    return _with_end(backend)


def words(decoder: decoders.Decoder | None) -> Tokenizer:
    """Words and parts of words as several kinds of decoders know them."""
    vocabulary = {word: i for i, word in enumerate(_WORDS)} | {"<end>": END}
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="s"))
    if decoder is not None:
        backend.decoder = decoder
    return _with_end(backend)


def _with_end(backend: tokenizers.Tokenizer) -> Tokenizer:
    backend.add_special_tokens(["<end>"])
    assert backend.token_to_id("<end>") == END
    return Tokenizer(backend)


BYTES = byte_level()
PIECES = byte_fallback(decoders.Strip(" ", 1, 0))
TINY_CODE = Tokenizer.from_file(Path(__file__).parents[3] / "models" / "tiny-code")
ALL = {
    "bytes": BYTES,
    "bytes in a sequence": byte_level(decoders.Sequence([decoders.ByteLevel()])),
    "bytes fused": byte_level(decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()])),
    "bytes stripped": byte_level(decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])),
    "tiny-code": TINY_CODE,
    "pieces": PIECES,
    "pieces with their first space": byte_fallback(),
    "pieces stripped at the end": byte_fallback(decoders.Strip(" ", 0, 1), empty=False),  # on which it panics
    "metaspace": words(decoders.Metaspace()),
    "word pieces": words(decoders.WordPiece()),
    "word ends": words(decoders.BPEDecoder()),
    "no decoder": words(None),
}


def spell(tokenizer: Tokenizer, pieces: Sequence[str]) -> list[int]:
    """Ids of pieces, byte tokens for those that the vocabulary lacks."""
    ids: list[int] = []
    for piece in pieces:
        known = tokenizer.token_id(piece)
        ids += [known] if known is not None else piece.encode()
    return ids

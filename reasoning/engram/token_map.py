"""Token compression: tokens with the same normal form share an id, so " The", "the" and "THE" hash alike."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from tokenizers import Regex, normalizers

from reasoning.text.tokenizer import Tokenizer

_PARTIAL_CHARACTER = "\ufffd"
_LONE_SPACE = "\ue000"  # private use: shelters a string that is exactly one space from strip()
_NORMALIZER = normalizers.Sequence(
    [
        normalizers.NFKC(),
        normalizers.NFD(),
        normalizers.StripAccents(),
        normalizers.Lowercase(),
        normalizers.Replace(Regex(r"[ \t\r\n]+"), " "),
        normalizers.Replace(Regex(r"^ $"), _LONE_SPACE),
        normalizers.Strip(),
        normalizers.Replace(_LONE_SPACE, " "),
    ]
)


@dataclass(frozen=True, eq=False)
class TokenMap:
    """Raw token id -> compressed id, as `ids` [vocabulary size] int64. Compressed ids are dense from 0.

    Two maps of equal size may differ: compare `sha256`.
    """

    ids: np.ndarray

    def __post_init__(self) -> None:
        ids = np.array(self.ids, dtype=np.int64)
        if ids.ndim != 1 or not np.array_equal(np.unique(ids), np.arange(ids.max(initial=-1) + 1)) or not ids.size:
            raise ValueError(
                f"token map: shape {ids.shape} does not hold every compressed id from 0 up; use TokenMap.build"
            )
        ids.flags.writeable = False
        object.__setattr__(self, "ids", ids)

    @classmethod
    def build(cls, tokenizer: Tokenizer) -> TokenMap:
        """Return the map of `tokenizer`: each id is decoded alone and normalised, new keys are numbered by token id."""
        numbering: dict[str, int] = {}
        texts = tokenizer.decode_each(range(tokenizer.vocab_size))
        keys = (_key(tokenizer, token_id, text) for token_id, text in enumerate(texts))
        return cls(np.array([numbering.setdefault(key, len(numbering)) for key in keys], dtype=np.int64))

    @property
    def vocab_size(self) -> int:
        """Number of raw token ids."""
        return len(self.ids)

    @cached_property
    def size(self) -> int:
        """Number of compressed ids."""
        return int(self.ids.max()) + 1

    @cached_property
    def sha256(self) -> str:
        """SHA-256, in hex, of the map as little-endian 32-bit unsigned integers."""
        return hashlib.sha256(self.ids.astype("<u4").tobytes()).hexdigest()


def _key(tokenizer: Tokenizer, token_id: int, text: str) -> str:
    """Return what tokens must have in common to share a compressed id."""
    if _PARTIAL_CHARACTER in text:
        return tokenizer.id_to_token(token_id) or text
    return _NORMALIZER.normalize_str(text) or text

"""The most text that a token can stand for, which gives a lower bound on the number of tokens of a text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import tokenizers
from tokenizers import models, pre_tokenizers

_SHRINKS = {"NFC": 16, "NFKC": 16, "NFD": 4, "NFKD": 4, "Lowercase": 4, "ByteLevel": 1, "Prepend": 1}
"""Normalizers, and how many times longer than its normalized form a text can be in UTF-8. Decomposition maps each
character, of at most 4 bytes, to at least one character; composition then joins at most 4."""
_KEEP_ALL = {"ByteLevel", "Digits", "Metaspace", "Punctuation", "Split", "UnicodeScripts"}
"""Pre-tokenizers that drop no text, unless their behavior is "Removed"."""


def longest_token(backend: tokenizers.Tokenizer) -> int | None:
    """Return the most bytes of UTF-8 text that a token can stand for; None if there is no bound.

    A text of n bytes has at least n divided by this many tokens. There is no bound if text can vanish, or if any amount
    of text can become a single token: with some normalizers and pre-tokenizers, with added tokens that absorb the white
    space around them, or with a vocabulary that does not cover all bytes.
    """
    shrink = 1
    for normalizer in _parts(backend.normalizer, "normalizers"):
        shrink *= _shrinks(normalizer)
    parts = list(_parts(backend.pre_tokenizer, "pretokenizers"))
    added = backend.get_added_tokens_decoder().values()
    drops = not all(part["type"] in _KEEP_ALL and part.get("behavior") != "Removed" for part in parts)
    if not shrink or drops or any(token.lstrip or token.rstrip for token in added):
        return None
    vocabulary = backend.get_vocab(with_added_tokens=False)
    steps = [*_parts(backend.normalizer, "normalizers"), *parts]
    if any(step["type"] == "ByteLevel" for step in steps) and vocabulary.keys() >= {
        *pre_tokenizers.ByteLevel.alphabet()
    }:
        own = max(map(len, vocabulary))  # each character of such a vocabulary stands for a byte
    elif _falls_back_on_bytes(backend.model, vocabulary):
        own = max(len(token.encode()) for token in vocabulary)
    else:
        return None
    return shrink * max([own, *(len(token.content.encode()) for token in added)])


def _parts(component: Any, children: str) -> Iterator[dict[str, Any]]:
    """Yield the steps of a normalizer or pre-tokenizer, as tokenizer.json describes them."""
    if component is not None:
        yield from _flat(json.loads(component.__getstate__()), children)


def _flat(step: dict[str, Any], children: str) -> Iterator[dict[str, Any]]:
    if step["type"] != "Sequence":
        yield step
    for child in step.get(children, ()):
        yield from _flat(child, children)


def _shrinks(normalizer: dict[str, Any]) -> int:
    """Return how many times longer than its normalized form a text can be; 0 if there is no bound."""
    if normalizer["type"] == "Replace":
        pattern = normalizer["pattern"].get("String")
        grows = pattern is not None and len(pattern.encode()) <= len(normalizer["content"].encode())
        return int(grows)
    return _SHRINKS.get(normalizer["type"], 0)


def _falls_back_on_bytes(model: Any, vocabulary: dict[str, int]) -> bool:
    """Whether each byte of text outside the vocabulary becomes a token."""
    return (
        isinstance(model, models.BPE) and model.byte_fallback and all(f"<0x{b:02X}>" in vocabulary for b in range(256))
    )

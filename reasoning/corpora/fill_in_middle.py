"""Fill-in-the-middle: a text is cut at two places, and its middle comes last (Bavarian et al., arXiv 2207.14255)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Gap:
    """A text in three parts, each of which may be empty."""

    prefix: str
    middle: str
    suffix: str
    suffix_first: bool
    """True for the order suffix, prefix, middle (SPM); False for prefix, suffix, middle (PSM)."""


def draw_gap(text: str, key: str, rate: float) -> Gap | None:
    """Cut a text at two characters drawn evenly, or leave it whole.

    Args:
        text: the text.
        key: what the draw depends on, and nothing else: the same key cuts the same text alike in every run.
        rate: probability of a cut; half of the cuts are for each order.

    Returns:
        The three parts; None for a text that stays whole.
    """
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
    coin, first, second, order = (int.from_bytes(digest[at : at + 8], "big") for at in range(0, 32, 8))
    if coin >= rate * 2**64:
        return None
    begin, end = sorted((first % (len(text) + 1), second % (len(text) + 1)))
    return Gap(text[:begin], text[begin:end], text[end:], order % 2 == 1)

"""Token ids in config.json, where one id may stand for a list."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reasoning.config.checks import is_whole, require

_MOST_IDS = 1024


def read_token_ids(raw: Mapping[str, Any], name: str, vocab_size: Any) -> tuple[int, ...]:
    """Return the token ids of a key that holds one id, a list of them or null.

    Ids from `vocab_size` on are left out: no model of that vocabulary ever chooses them.

    Raises:
        ValueError: the value is anything else, or an unreasonably long list.
    """
    value = raw.get(name)
    value = tuple(value) if isinstance(value, list) else value
    values = () if value is None else value if isinstance(value, tuple) else (value,)
    require(len(values) <= _MOST_IDS, name, value, f"at most {_MOST_IDS} token ids, not {len(values)}")
    whole = all(is_whole(token, 0) for token in values)
    require(whole, name, value, "a token id or a list of whole numbers of at least 0")
    return tuple(token for token in values if not is_whole(vocab_size) or token < vocab_size)

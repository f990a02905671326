"""Special tokens of tokenizer_config.json: their names, and the tokens it puts around every text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reasoning.config.side_file import read_side_file

CONFIG_FILE = "tokenizer_config.json"
_LEGACY_FILE = "special_tokens_map.json"
_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_LISTS = ("additional_special_tokens", "extra_special_tokens")


@dataclass(frozen=True)
class SpecialTokens:
    """Special tokens of a model directory, as texts."""

    named: tuple[str, ...] = ()
    """Tokens that are special even where tokenizer.json does not mark them as special."""
    bos: str | None = None
    """Beginning-of-sequence token to put before every text; None adds none."""
    eos: str | None = None
    """End-of-sequence token to put after every text; None adds none."""

    @classmethod
    def read(cls, directory: Path) -> SpecialTokens:
        """Read `tokenizer_config.json`, and the older `special_tokens_map.json` for tokens that it does not name.

        `add_bos_token` and `add_eos_token` add a token if they are true, as the LlamaTokenizer classes of transformers
        4 do. If they are false or absent, the post-processor of tokenizer.json alone adds tokens, as in transformers 5.
        Neither adds a token that has no name.

        Raises:
            ValueError: a file is damaged, or the value of a key has the wrong type.
        """
        config = read_side_file(directory / _LEGACY_FILE) | read_side_file(directory / CONFIG_FILE)
        tokens = {name: _text(name, config.get(name)) for name in _NAMES}
        named = [*(token for token in tokens.values() if token is not None), *_listed(config)]
        bos = tokens["bos_token"] if _flag(config, "add_bos_token") else None
        eos = tokens["eos_token"] if _flag(config, "add_eos_token") else None
        return cls(tuple(dict.fromkeys(named)), bos, eos)


def _listed(config: Mapping[str, Any]) -> Iterator[str]:
    for name in _LISTS:
        values = config.get(name) or []
        if isinstance(values, dict):
            values = list(values.values())
        if not isinstance(values, list):
            raise ValueError(f"{CONFIG_FILE}: {name} {values!r} is not a list of tokens; copy the file again")
        yield from (text for value in values if (text := _text(name, value)) is not None)


def _text(name: str, value: Any) -> str | None:
    """Return the text of a token that is given as a string, or as an object with its `content`."""
    text = value.get("content") if isinstance(value, dict) else value
    if text is not None and not isinstance(text, str):
        raise ValueError(f"{CONFIG_FILE}: {name} {value!r} is not the text of a token; copy the file again")
    return text


def _flag(config: Mapping[str, Any], name: str) -> bool:
    value = config.get(name)
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{CONFIG_FILE}: {name} {value!r} is not true or false; correct it")
    return bool(value)

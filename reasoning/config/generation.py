"""generation_config.json: additional end-of-text tokens of a model."""

from __future__ import annotations

import logging
import reprlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from reasoning.config.checks import is_whole
from reasoning.config.side_file import read_side_file

GENERATION_FILE = "generation_config.json"

_log = logging.getLogger(__name__)


def end_token_ids(model_dir: Path, configured: Iterable[int], vocab_size: int) -> tuple[int, ...]:
    """Return the end-of-text tokens of a model: those of config.json and those of generation_config.json.

    Ids outside the vocabulary, which published files contain, are ignored with a warning. The other keys of
    generation_config.json, such as a recommended temperature, are not used: requests alone set sampling parameters.

    Args:
        model_dir: the model directory; it may lack generation_config.json.
        configured: `eos_token_id` of config.json.
        vocab_size: exclusive upper bound of the model's token ids.

    Raises:
        ValueError: generation_config.json is damaged, or its `eos_token_id` is neither a token id nor a list of such.
    """
    found = dict.fromkeys([*configured, *_eos_token_ids(model_dir)])
    beyond = [token for token in found if not 0 <= token < vocab_size]
    if beyond:
        shown = reprlib.repr(beyond)
        _log.warning("eos_token_id: ids %s are ignored, the vocabulary ends at %d", shown, vocab_size - 1)
    return tuple(token for token in found if 0 <= token < vocab_size)


def _eos_token_ids(model_dir: Path) -> list[int]:
    value: Any = read_side_file(model_dir / GENERATION_FILE).get("eos_token_id")
    ids = [] if value is None else value if isinstance(value, list) else [value]
    for token in ids:
        if not is_whole(token):
            shown = reprlib.repr(token)
            raise ValueError(f"{GENERATION_FILE}: eos_token_id {shown} is not a token id or a list of such; correct it")
    return ids

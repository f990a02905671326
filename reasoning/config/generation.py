"""generation_config.json: further tokens at which a model's completions end."""

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
    """Return the tokens that end a completion: those of config.json and those of generation_config.json.

    Ids that the model cannot produce are left out with a warning, as published files have some. Nothing else of
    generation_config.json is used: sampling is what a request says, whatever a model's authors recommend.

    Args:
        model_dir: where generation_config.json may be.
        configured: `eos_token_id` of config.json.
        vocab_size: ids that the model produces are below it.

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

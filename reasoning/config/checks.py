"""Checks of a configuration's fields, whose errors name field, value and what is accepted."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

# Whole numbers that may be 0, which stands for "none" or counts from 0; all others are at least 1.
_ZERO_ALLOWED = {
    "first_k_dense_replace",
    "num_nextn_predict_layers",
    "n_shared_experts",
    "n_routed_experts",
    "num_experts_per_tok",
    "n_group",
    "topk_group",
    "bos_token_id",
    "eos_token_id",
    "engram_layer_ids",
    "engram_pad_token_id",
    "engram_compressed_vocab_size",
    "engram_conv_kernel",
}


def check_types(config: Any, prefix: str = "") -> None:
    """Raise ValueError for the first field whose value is not of its declared type, or negative."""
    for field in dataclasses.fields(config):
        name, value = prefix + field.name, getattr(config, field.name)
        least = 0 if field.name in _ZERO_ALLOWED else 1
        if field.type == "int" or (field.type == "int | None" and value is not None):
            require(is_whole(value, least), name, value, f"a whole number of at least {least}")
        elif field.type == "tuple[int, ...]":
            whole = isinstance(value, tuple) and all(is_whole(item, least) for item in value)
            require(whole, name, value, f"a list of whole numbers of at least {least}")
        elif field.type == "float":
            require(is_number(value) and value >= 0, name, value, "a number, not negative")
        elif field.type == "bool":
            require(isinstance(value, bool), name, value, "true or false")


def is_whole(value: Any, least: float = -math.inf) -> bool:
    """Whether a value is an integer, and no boolean, of at least `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, and no boolean."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -math.inf < value < math.inf


def require(condition: bool, name: str, value: Any, accepted: str) -> None:
    """Raise ValueError naming a field, its value and what is accepted, unless the condition holds."""
    if not condition:
        raise ValueError(f"{name}: {value!r} is not supported; expected {accepted}")

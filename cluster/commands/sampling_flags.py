"""Flags of `engram generate` about sampling: one for each field of SamplingParams."""

from __future__ import annotations

import argparse
from typing import Any

from reasoning.request import SAMPLING_FIELDS, SamplingParams

_DEFAULTS = SamplingParams(seed=0)
_FLAGS: tuple[tuple[str, str, type, str], ...] = (
    ("max_new_tokens", "N", int, "tokens to generate at most, for each sample"),
    ("temperature", "T", float, "0 takes the likeliest token"),
    ("top_p", "P", float, "sample from this share of probability"),
    ("top_k", "K", int, "sample from the K likeliest, 0 for all"),
    ("min_p", "P", float, "leave out what is less likely than this share of the likeliest"),
    ("seed", "S", int, "of sampling; every line draws its own from it"),
    ("repetition_penalty", "R", float, "divides logits of tokens in prompt or output"),
    ("presence_penalty", "A", float, "taken from logits of tokens in the output"),
    ("frequency_penalty", "A", float, "taken from logits of tokens in the output as often as they are in it"),
    ("n", "N", int, "samples of each prompt"),
)


def add_sampling_flags(group: Any) -> None:
    """Add the flags to an argument group."""
    for name, metavar, kind, meaning in _FLAGS:
        default = getattr(_DEFAULTS, name)
        group.add_argument(
            _flag(name), metavar=metavar, type=kind, default=default, help=f"{meaning} (default {default})"
        )
    group.add_argument(
        "--stop", metavar="TEXT", action="append", default=[], help="end before this text; may be given several times"
    )
    group.add_argument(
        "--stop-token-ids", metavar="ID", type=int, nargs="+", default=[], help="end at any of these tokens"
    )
    group.add_argument(
        "--logprobs", metavar="K", type=int, help="report the log-probability of each token and of the K likeliest"
    )
    group.add_argument(
        "--include-stop-str-in-output", action="store_true", help="keep the text of what ends a sample in its output"
    )
    group.add_argument(
        "--skip-special-tokens",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="leave the text of special tokens out (default)",
    )
    group.add_argument("--ignore-eos", action="store_true", help="go on after an end-of-text token")


def sampling_from(args: argparse.Namespace) -> SamplingParams:
    """Return what the flags say. RequestError names a value that is out of range."""
    return SamplingParams(**{name: getattr(args, name) for name in SAMPLING_FIELDS})


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")

"""What a user asks of the engine and what comes back."""

from __future__ import annotations

import math
import reprlib
from dataclasses import dataclass
from typing import Any

_LARGEST = 2**63 - 1


class RequestError(ValueError):
    """A request that cannot be served; `field` names the part of it that is at fault."""

    def __init__(self, field: str, message: str):
        super().__init__(f"{field}: {message}")
        self.field, self.message = field, message


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen and when to stop. Raises RequestError for values out of range."""

    max_new_tokens: int = 128
    """Tokens to generate at most."""
    temperature: float = 0.0
    """0 always takes the likeliest token; 1 samples from the model's distribution."""
    top_p: float = 1.0
    """Sample from the fewest tokens whose probabilities reach this sum."""
    top_k: int = 0
    """Sample from this many likeliest tokens; 0 for all."""
    seed: int | None = None
    """Makes sampling repeatable, whatever else is in the batch; None draws a new seed."""
    ignore_eos: bool = False
    """Go on after the model's end-of-text token."""

    def __post_init__(self) -> None:
        _check("max_new_tokens", self.max_new_tokens, 1)
        _check("temperature", self.temperature, 0, 100, whole=False)
        _check("top_p", self.top_p, 0, 1, whole=False)
        if self.top_p == 0:
            raise RequestError("top_p", "0 leaves no token to choose; use a value above 0, at most 1")
        _check("top_k", self.top_k, 0)
        if self.seed is not None:
            _check("seed", self.seed, 0)
        if not isinstance(self.ignore_eos, bool):
            raise RequestError("ignore_eos", f"{reprlib.repr(self.ignore_eos)} is not true or false")


def _check(name: str, value: Any, least: int, most: float = _LARGEST, whole: bool = True) -> None:
    numeric = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not numeric or not -math.inf < value < math.inf:
        raise RequestError(name, f"{reprlib.repr(value)} is not {'a whole number' if whole else 'a number'}")
    if not least <= value <= most:
        bound = f"at least {least}" if value < least and most == _LARGEST else f"{least} to {most}"
        raise RequestError(name, f"{reprlib.repr(value)} is out of range; use {bound}")


@dataclass(frozen=True)
class Request:
    """One prompt, as text or as token ids (exactly one of the two)."""

    id: str
    prompt: str | None = None
    prompt_token_ids: tuple[int, ...] | None = None
    sampling: SamplingParams = SamplingParams()


@dataclass(frozen=True)
class Completion:
    """A finished request."""

    id: str
    text: str
    """What the new tokens decode to; empty when the model has no tokenizer."""
    token_ids: tuple[int, ...]
    """New tokens, the end-of-text token included where it ended the completion."""
    prompt_tokens: int
    finish_reason: str
    """"stop" at an end-of-text token, "length" at max_new_tokens or the end of the context."""


@dataclass(frozen=True)
class RequestFailure:
    """A request that was refused or that failed on the way."""

    id: str
    field: str
    message: str
    retryable: bool = False
    """Whether the same request may succeed later: true when the memory did not answer."""


Result = Completion | RequestFailure

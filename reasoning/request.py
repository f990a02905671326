"""Requests to the engine, sampling parameters, and results."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar

_LARGEST = 2**63 - 1
_MOST_STOPS, _LONGEST_STOP = 16, 256
_MOST_STOP_IDS = 64
_MOST_LOGPROBS = 20
_MOST_SAMPLES = 128

_Item = TypeVar("_Item")


class RequestError(ValueError):
    """A request that cannot be served. `field` names the part of the request that is at fault."""

    def __init__(self, field: str, message: str):
        super().__init__(f"{field}: {message}")
        self.field, self.message = field, message


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are sampled and what ends a sample.

    Logits change in this order: repetition penalty, frequency and presence penalty, temperature, top_k, top_p, min_p.

    Raises:
        RequestError: a value is of the wrong type or out of range.
    """

    max_new_tokens: int = 128
    """Maximum number of tokens to generate for each sample."""
    temperature: float = 0.0
    """0 always takes the most likely token; 1 samples from the model's distribution."""
    top_p: float = 1.0
    """Sample from the fewest tokens whose probabilities reach this sum."""
    top_k: int = 0
    """Sample from this many most likely tokens; 0 for all."""
    min_p: float = 0.0
    """Drop tokens below this fraction of the most likely token's probability; 0 drops none."""
    seed: int | None = None
    """Seed that makes sampling repeatable, whatever else is in the batch; None draws a new seed."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens in prompt or output (arXiv 1909.05858, section 4.1)."""
    presence_penalty: float = 0.0
    """Amount subtracted from the logit of every token that the output contains, as in OpenAI's API."""
    frequency_penalty: float = 0.0
    """Amount subtracted from the logit of a token for each time the output contains it, as in OpenAI's API."""
    stop: tuple[str, ...] = ()
    """Texts that end a sample; a special token's text counts as its id. A single str, or a list, is accepted."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end a sample as the end-of-text token does, also where that is ignored. A list is accepted."""
    include_stop_str_in_output: bool = False
    """Keep what ended a sample in its text: the stop text, or the text of the stop or end-of-text token."""
    skip_special_tokens: bool = True
    """Leave the text of special tokens out of the output."""
    logprobs: int | None = None
    """Report the log-probability of each token and of this many most likely tokens; None reports none."""
    n: int = 1
    """Number of samples to draw for the prompt; sample i draws with seed + i."""
    ignore_eos: bool = False
    """Continue after the model's end-of-text tokens."""

    def __post_init__(self) -> None:
        _check_number("max_new_tokens", self.max_new_tokens, 1)
        _check_number("temperature", self.temperature, 0, 100, whole=False)
        _check_number("top_p", self.top_p, 0, 1, whole=False)
        if self.top_p == 0:
            raise RequestError("top_p", "0 leaves no token to choose; use a value above 0, at most 1")
        _check_number("top_k", self.top_k, 0)
        _check_number("min_p", self.min_p, 0, 1, whole=False)
        if self.seed is not None:
            _check_number("seed", self.seed, 0)
        _check_number("repetition_penalty", self.repetition_penalty, 0.01, 100, whole=False)
        _check_number("presence_penalty", self.presence_penalty, -2, 2, whole=False)
        _check_number("frequency_penalty", self.frequency_penalty, -2, 2, whole=False)
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        object.__setattr__(self, "stop", _checked("stop", stop, _MOST_STOPS, _check_stop))
        ids = _checked("stop_token_ids", self.stop_token_ids, _MOST_STOP_IDS, _check_stop_id)
        object.__setattr__(self, "stop_token_ids", ids)
        if self.logprobs is not None:
            _check_number("logprobs", self.logprobs, 0, _MOST_LOGPROBS)
        _check_number("n", self.n, 1, _MOST_SAMPLES)
        for name in ("include_stop_str_in_output", "skip_special_tokens", "ignore_eos"):
            if not isinstance(getattr(self, name), bool):
                raise RequestError(name, f"{reprlib.repr(getattr(self, name))} is not true or false")


SAMPLING_FIELDS = tuple(field.name for field in fields(SamplingParams))
"""Names of the sampling parameters."""


def _check_number(name: str, value: Any, least: float, most: float = _LARGEST, whole: bool = True) -> None:
    numeric = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not numeric or not -math.inf < value < math.inf:
        raise RequestError(name, f"{reprlib.repr(value)} is not {'a whole number' if whole else 'a number'}")
    if not least <= value <= most:
        bound = f"at least {least}" if value < least and most == _LARGEST else f"{least} to {most}"
        raise RequestError(name, f"{reprlib.repr(value)} is out of range; use {bound}")


def _checked(name: str, values: Any, most: int, check: Callable[[_Item], None]) -> tuple[_Item, ...]:
    """Return a list or tuple as a tuple whose items have passed `check`."""
    if not isinstance(values, list | tuple):
        raise RequestError(name, f"{reprlib.repr(values)} is not a list")
    if len(values) > most:
        raise RequestError(name, f"has {len(values)} entries; give {most} at most")
    for value in values:
        check(value)
    return tuple(values)


def _check_stop(text: Any) -> None:
    if not isinstance(text, str):
        raise RequestError("stop", f"{reprlib.repr(text)} is not a string")
    if not text:
        raise RequestError("stop", "an empty string would stop every text at once; leave it out")
    if len(text) > _LONGEST_STOP:
        raise RequestError("stop", f"{reprlib.repr(text)} has {len(text)} characters; use {_LONGEST_STOP} at most")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise RequestError("stop", f"{text!a} has an unpaired surrogate, which no output has; remove it")


def _check_stop_id(token_id: Any) -> None:
    _check_number("stop_token_ids", token_id, 0)


@dataclass(frozen=True)
class Request:
    """One prompt, as text or as token ids (exactly one of the two)."""

    id: str
    prompt: str | None = None
    prompt_token_ids: tuple[int, ...] | None = None
    sampling: SamplingParams = SamplingParams()
    stream: bool = False
    """Send a Delta for every step that adds to a sample, before the Completion."""


FinishReason = Literal["stop", "length", "cancelled"]
""""stop": an end-of-text token, stop token or stop text; "length": max_new_tokens or the end of the context."""


@dataclass(frozen=True)
class TokenLogprob:
    """Log-probability of a token in the model's own distribution, before penalties, temperature and truncation."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    """The most likely tokens with their log-probabilities, best first; tokens of probability 0 are left out."""


@dataclass(frozen=True)
class Choice:
    """One sample of a request."""

    index: int
    """Index among the request's n samples, from 0."""
    text: str
    """What the new tokens decode to, without what ended the sample (see `SamplingParams.include_stop_str_in_output`);
    empty when the model has no tokenizer."""
    token_ids: tuple[int, ...]
    """New tokens, those included that ended the sample: the end-of-text or stop token, the tokens of a stop text."""
    finish_reason: FinishReason
    """Why the sample ended."""
    logprobs: tuple[TokenLogprob, ...] | None = None
    """An entry for each of `token_ids` if `SamplingParams.logprobs` is set, else None."""


@dataclass(frozen=True)
class Completion:
    """A finished request. `text`, `token_ids` and `finish_reason` are those of its first sample."""

    id: str
    choices: tuple[Choice, ...]
    """All n samples, by index."""
    prompt_tokens: int
    cached_tokens: int = 0
    """Number of prompt tokens that were in the cache already, left by earlier requests."""

    @property
    def text(self) -> str:
        """Text of the first sample."""
        return self.choices[0].text

    @property
    def token_ids(self) -> tuple[int, ...]:
        """New tokens of the first sample."""
        return self.choices[0].token_ids

    @property
    def finish_reason(self) -> FinishReason:
        """Why the first sample ended."""
        return self.choices[0].finish_reason


@dataclass(frozen=True)
class Delta:
    """Text and tokens that a step added to a sample of a streaming request. Joined in order, they are its Choice."""

    id: str
    index: int
    text: str
    """Final characters. An incomplete character, or a possible beginning of a stop text, comes with a later Delta."""
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None = None


@dataclass(frozen=True)
class RequestFailure:
    """A request that was refused, or failed while it was served."""

    id: str
    field: str
    message: str
    retryable: bool = False
    """Whether the same request may succeed later: true when the memory did not answer."""


Result = Completion | RequestFailure
Event = Delta | Result
"""A part of a sample of a streaming request, or the end of a request."""

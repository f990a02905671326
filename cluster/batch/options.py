"""Options of a batch job: how many lines go to a worker at a time, and how large a line may be."""

from __future__ import annotations

from dataclasses import dataclass

from reasoning.engine.config import EngineStats
from reasoning.text.prompt_limits import PromptLimits

_ESCAPED_BYTES = 6
"""Most bytes of JSON for a byte of text, as in \\u0000."""
_TOKEN_ID_BYTES = 24
"""Bytes of JSON for a token id, a comma and white space."""
_USUAL_TOKEN_BYTES = 64
"""Assumed length of the longest token, for a tokenizer without a bound on it."""
_OTHER_BYTES = 1 << 16
"""Bytes of JSON for everything but the prompt: sixteen long stop texts, sampling, an id."""


@dataclass(frozen=True)
class JobOptions:
    """Options of a batch job."""

    batch_size: int | None = None
    """Lines that a worker receives at a time. None: as many as its engine runs together."""
    max_line_bytes: int | None = None
    """Largest input line in bytes; a larger one becomes an error record without being parsed. None: what the longest
    prompt that fits into the context can take in JSON."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_line_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: {value} is too few; give at least 1")


@dataclass(frozen=True)
class InputLimits:
    """How large an input line and its prompt may be."""

    line_bytes: int = 1 << 24
    """Largest line in bytes; a larger one becomes an error record without being parsed."""
    prompts: PromptLimits | None = None
    """Limits of a prompt; None leaves the check to the workers."""

    @classmethod
    def of(cls, engine: EngineStats, line_bytes: int | None = None) -> InputLimits:
        """Derive the limits from an engine's context.

        Unless `line_bytes` is given, a line may have what the longest prompt that fits takes in JSON: six bytes for
        each byte that a context full of the longest token stands for, or 24 for each token id, and 64 KiB for the rest.
        """
        prompts = PromptLimits(engine.context, engine.token_bytes)
        text_bytes = prompts.text_bytes or _USUAL_TOKEN_BYTES * engine.context
        longest = max(_ESCAPED_BYTES * text_bytes, _TOKEN_ID_BYTES * engine.context)
        return cls(line_bytes or longest + _OTHER_BYTES, prompts)

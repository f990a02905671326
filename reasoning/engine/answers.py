"""What the samples of a request have come to so far, as text, tokens and why they ended."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from reasoning.request import Choice, Completion, Delta, FinishReason, Request, TokenLogprob
from reasoning.sampling.sampler import Chosen
from reasoning.scheduling.sequence import Sequence
from reasoning.text.text_stream import TextStream
from reasoning.text.tokenizer import Tokenizer


class Sample:
    """One choice being written."""

    def __init__(self, request: Request, index: int, tokenizer: Tokenizer | None):
        self.index, self._tokenizer = index, tokenizer
        self._wants_logprobs = request.sampling.logprobs is not None
        follow = tokenizer is not None and (request.stream or request.sampling.stop)
        self._stream = TextStream(tokenizer, request.sampling.stop) if tokenizer is not None and follow else None
        self._tokens: list[int] = []
        self._text = ""
        self._logprobs: list[TokenLogprob] = []
        self._told_tokens = self._told_text = 0

    def write(self, chosen: Chosen) -> None:
        """Add a token."""
        self._tokens.append(chosen.token)
        if self._wants_logprobs and chosen.logprob is not None:
            self._logprobs.append(TokenLogprob(chosen.token, chosen.logprob, chosen.top))
        if self._stream is not None:
            self._text += self._stream.feed(chosen.token)

    @property
    def stopped(self) -> bool:
        """Whether a stop text has come."""
        return self._stream is not None and self._stream.stopped

    def end(self, reason: FinishReason) -> Choice:
        """Return the finished choice."""
        if self._stream is not None:
            self._text += self._stream.finish()
        elif self._tokenizer is not None:
            self._text = self._tokenizer.decode(self._tokens)
        logprobs = tuple(self._logprobs) if self._wants_logprobs else None
        return Choice(self.index, self._text, tuple(self._tokens), "stop" if self.stopped else reason, logprobs)

    def delta(self, request_id: str) -> Delta | None:
        """Return what has come since the last call; None for nothing."""
        tokens, text = tuple(self._tokens[self._told_tokens :]), self._text[self._told_text :]
        logprobs = tuple(self._logprobs[self._told_tokens :]) if self._wants_logprobs else None
        self._told_tokens, self._told_text = len(self._tokens), len(self._text)
        return Delta(request_id, self.index, text, tokens, logprobs) if tokens or text else None


@dataclass
class Answer:
    """A request and its samples, those that are being written and those that are finished."""

    request: Request
    samples: dict[Sequence, Sample]
    choices: dict[int, Choice] = field(default_factory=dict)

    @classmethod
    def begin(cls, request: Request, sequences: Iterable[Sequence], tokenizer: Tokenizer | None) -> Answer:
        """Start with nothing written."""
        return cls(request, {sequence: Sample(request, sequence.index, tokenizer) for sequence in sequences})

    @property
    def unfinished(self) -> list[Sequence]:
        """Sequences whose samples are being written."""
        return [sequence for sequence in self.samples if not sequence.ended]

    @property
    def finished(self) -> bool:
        """Whether all samples are."""
        return len(self.choices) == len(self.samples)

    def end(self, sequence: Sequence, reason: FinishReason) -> None:
        """Finish a sample."""
        self.choices[sequence.index] = self.samples[sequence].end(reason)

    def delta(self, sequence: Sequence) -> Delta | None:
        """Return what the sample got since the last call, if the request streams."""
        return self.samples[sequence].delta(self.request.id) if self.request.stream else None

    def completion(self) -> Completion:
        """Return the result of the whole request."""
        first = next(iter(self.samples))
        choices = tuple(choice for _, choice in sorted(self.choices.items()))
        return Completion(self.request.id, choices, first.prompt_tokens, first.reused_tokens)

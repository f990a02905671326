"""Samples of a request while they are generated: text, tokens, log-probabilities and finish reasons."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from reasoning.request import Choice, Completion, Delta, FinishReason, Request, TokenLogprob
from reasoning.sampling.sampler import Chosen
from reasoning.scheduling.sequence import Sequence
from reasoning.text.text_stream import TextStream
from reasoning.text.tokenizer import Tokenizer


class Sample:
    """A choice that is being generated."""

    def __init__(self, request: Request, index: int, tokenizer: Tokenizer | None, ends: frozenset[int]):
        """Begin an empty sample, which a token of `ends` will end."""
        sampling = request.sampling
        self.index, self._tokenizer, self._ends = index, tokenizer, ends
        self._include, self._skip = sampling.include_stop_str_in_output, sampling.skip_special_tokens
        self._wants_logprobs = sampling.logprobs is not None
        follow = tokenizer is not None and (request.stream or sampling.stop)
        self._stream = TextStream(tokenizer, sampling.stop, self._include, self._skip) if tokenizer and follow else None
        self._ended = False
        self._tokens: list[int] = []
        self._text = ""
        self._logprobs: list[TokenLogprob] = []
        self._reported_tokens = self._reported_text = 0

    def write(self, chosen: Chosen) -> None:
        """Add a token."""
        assert not self.stopped, f"token {chosen.token} after the end"
        self._tokens.append(chosen.token)
        self._ended = chosen.token in self._ends
        if self._wants_logprobs and chosen.logprob is not None:
            self._logprobs.append(TokenLogprob(chosen.token, chosen.logprob, chosen.top))
        if self._stream is not None and (self._include or not self._ended):
            self._text += self._stream.feed(chosen.token)

    @property
    def stopped(self) -> bool:
        """Whether an end-of-text token, a stop token or a stop text has ended the sample."""
        return self._ended or (self._stream is not None and self._stream.stopped)

    def end(self, reason: FinishReason) -> Choice:
        """Return the finished choice."""
        if self._stream is not None:
            self._text += self._stream.finish()
        elif self._tokenizer is not None:
            shown = self._tokens[:-1] if self._ended and not self._include else self._tokens
            self._text = self._tokenizer.decode(shown, self._skip)
        logprobs = tuple(self._logprobs) if self._wants_logprobs else None
        return Choice(self.index, self._text, tuple(self._tokens), "stop" if self.stopped else reason, logprobs)

    def delta(self, request_id: str) -> Delta | None:
        """Return what was added since the last call; None if nothing was."""
        tokens, text = tuple(self._tokens[self._reported_tokens :]), self._text[self._reported_text :]
        logprobs = tuple(self._logprobs[self._reported_tokens :]) if self._wants_logprobs else None
        self._reported_tokens, self._reported_text = len(self._tokens), len(self._text)
        return Delta(request_id, self.index, text, tokens, logprobs) if tokens or text else None


@dataclass
class Answer:
    """A request with its samples, unfinished and finished."""

    request: Request
    samples: dict[Sequence, Sample]
    choices: dict[int, Choice] = field(default_factory=dict)

    @classmethod
    def begin(
        cls, request: Request, sequences: Iterable[Sequence], tokenizer: Tokenizer | None, ends: frozenset[int]
    ) -> Answer:
        """Start empty samples, which tokens of `ends` will end."""
        return cls(request, {sequence: Sample(request, sequence.index, tokenizer, ends) for sequence in sequences})

    @property
    def unfinished(self) -> list[Sequence]:
        """Sequences of the unfinished samples."""
        return [sequence for sequence in self.samples if not sequence.ended]

    @property
    def finished(self) -> bool:
        """Whether all samples are finished."""
        return len(self.choices) == len(self.samples)

    def end(self, sequence: Sequence, reason: FinishReason) -> None:
        """Finish a sample."""
        self.choices[sequence.index] = self.samples[sequence].end(reason)

    def delta(self, sequence: Sequence) -> Delta | None:
        """Return what was added to a sample since the last call; None if nothing was or the request does not stream."""
        return self.samples[sequence].delta(self.request.id) if self.request.stream else None

    def completion(self) -> Completion:
        """Return the result of the whole request."""
        first = next(iter(self.samples))
        choices = tuple(choice for _, choice in sorted(self.choices.items()))
        return Completion(self.request.id, choices, first.prompt_tokens, first.reused_tokens)

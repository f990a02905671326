"""Prompts of requests to token ids: tokenization and validation."""

from __future__ import annotations

from collections.abc import Sequence

from reasoning.request import Request, RequestError
from reasoning.text.longest_token import longest_token
from reasoning.text.prompt_limits import PromptLimits
from reasoning.text.stops import check_stops
from reasoning.text.tokenizer import Tokenizer


class PromptReader:
    """Tokenizes and checks prompts for one model.

    A text gets the special tokens that its tokenizer's files put around texts, such as a beginning-of-sequence token
    (see `Tokenizer.encode`); token ids are taken as they are. `bos_token_id` of config.json adds nothing: to
    transformers it is the token to start from without a prompt.
    """

    def __init__(self, tokenizer: Tokenizer | None, vocab_size: int, context: int):
        """Set the limits of the model.

        Args:
            tokenizer: None accepts `prompt_token_ids` only.
            vocab_size: exclusive upper bound of token ids.
            context: maximum number of tokens of a prompt and its completion together.
        """
        self.context = context
        self.limits = PromptLimits(context, None if tokenizer is None else longest_token(tokenizer.backend))
        self._tokenizer, self._vocab_size = tokenizer, vocab_size

    def read(self, request: Request) -> list[int]:
        """Return the token ids of a request's prompt.

        Raises:
            RequestError: a field of the request cannot be served.
        """
        check_stops(request.sampling, self._tokenizer)
        self._check_ids("stop_token_ids", request.sampling.stop_token_ids)
        field = "prompt" if request.prompt_token_ids is None else "prompt_token_ids"
        self.limits.check(request)
        prompt = self._ids(request, field)
        if not prompt:
            raise RequestError(field, "is empty; give at least one token")
        self.limits.check_tokens(field, len(prompt))
        return prompt

    def _ids(self, request: Request, field: str) -> list[int]:
        if (request.prompt is None) == (request.prompt_token_ids is None):
            raise RequestError("prompt", "give exactly one of prompt and prompt_token_ids")
        ids = self._encode(request.prompt) if request.prompt is not None else request.prompt_token_ids
        if not isinstance(ids, list | tuple):
            raise RequestError(field, f"{ids!r} is not a list of token ids")
        self._check_ids(field, ids)
        return list(ids)

    def _check_ids(self, field: str, ids: Sequence[int]) -> None:
        for position, token in enumerate(ids):
            if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < self._vocab_size:
                message = f"{token!r} at position {position} is not a token id from 0 to {self._vocab_size - 1}"
                raise RequestError(field, message)

    def _encode(self, prompt: str) -> list[int]:
        if self._tokenizer is None:
            raise RequestError("prompt", "this model has no tokenizer.json; give prompt_token_ids instead")
        try:
            return self._tokenizer.encode(prompt, add_special_tokens=True)
        except ValueError as error:
            raise RequestError("prompt", str(error).removeprefix("text: ")) from error

"""Limits on the size of a prompt, which are checked before it is tokenized."""

from __future__ import annotations

from dataclasses import dataclass

from reasoning.request import Request, RequestError


@dataclass(frozen=True)
class PromptLimits:
    """Limits on the size of a prompt."""

    context: int
    """Most tokens of a prompt and its completion together."""
    token_bytes: int | None = None
    """Most bytes of UTF-8 text that a token stands for; None if there is no bound."""

    @property
    def text_bytes(self) -> int | None:
        """Most bytes of text that fit into the context; None without a bound."""
        return None if self.token_bytes is None else self.token_bytes * self.context

    def check(self, request: Request) -> None:
        """Refuse a prompt that cannot fit into the context, without tokenizing it.

        Raises:
            RequestError: the prompt has too many token ids, or more text than the tokens of a context can stand for.
        """
        if isinstance(request.prompt_token_ids, list | tuple):
            self.check_tokens("prompt_token_ids", len(request.prompt_token_ids))
        if isinstance(request.prompt, str) and self.token_bytes is not None:
            size = len(request.prompt.encode(errors="surrogatepass"))
            if size >= self.token_bytes * self.context:
                self.check_tokens("prompt", -(-size // self.token_bytes), "at least ")

    def check_tokens(self, field: str, count: int, least: str = "") -> None:
        """Refuse a prompt of `count` tokens that leaves no room for a completion.

        Raises:
            RequestError: it is too long.
        """
        if count >= self.context:
            message = f"{least}{count} tokens leave no room in a context of {self.context}; shorten the prompt"
            raise RequestError(field, message)

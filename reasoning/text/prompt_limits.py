"""What a prompt may measure, checked before it is tokenized."""

from __future__ import annotations

from dataclasses import dataclass

from reasoning.request import Request, RequestError


@dataclass(frozen=True)
class PromptLimits:
    """What a prompt may measure."""

    context: int
    """Tokens that a prompt and its completion may have together."""
    token_bytes: int | None = None
    """Bytes of UTF-8 text that one token stands for at most; None if there is no bound."""

    @property
    def text_bytes(self) -> int | None:
        """Bytes that the text of a prompt may have at most; None without a bound."""
        return None if self.token_bytes is None else self.token_bytes * self.context

    def check(self, request: Request) -> None:
        """Refuse what cannot fit, at the price of measuring it.

        Raises:
            RequestError: the prompt has too many token ids, or more text than tokens that fit can stand for.
        """
        if isinstance(request.prompt_token_ids, list | tuple):
            self.check_tokens("prompt_token_ids", len(request.prompt_token_ids))
        if isinstance(request.prompt, str) and self.token_bytes is not None:
            size = len(request.prompt.encode(errors="surrogatepass"))
            if size >= self.token_bytes * self.context:
                self.check_tokens("prompt", -(-size // self.token_bytes), "at least ")

    def check_tokens(self, field: str, count: int, least: str = "") -> None:
        """Refuse a prompt of so many tokens if none would be left for a completion.

        Raises:
            RequestError: it is too long.
        """
        if count >= self.context:
            message = f"{least}{count} tokens leave no room in a context of {self.context}; shorten the prompt"
            raise RequestError(field, message)

"""The bearer token of a memory: how clients send it and shards check it, at both ports."""

from __future__ import annotations

import hmac
from collections import namedtuple
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from memory_service.errors import Unauthenticated
from memory_service.protocol.status import refuse

MIN_LENGTH = 16
_HEADER = "authorization"
REFUSAL = (
    "this memory asks for a token and got {what}: "
    "set ENGRAM_MEMORY_TOKEN_FILE or ENGRAM_MEMORY_TOKEN to the token that the shards were started with"
)


@dataclass(frozen=True)
class BearerToken:
    """A secret that clients and shards share. It never appears in a repr, a log or an error.

    Raises:
        ValueError: the secret is too short, or HTTP headers cannot carry it.
    """

    secret: str = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.secret) < MIN_LENGTH:
            raise ValueError(f"the token has {len(self.secret)} characters: use at least {MIN_LENGTH}, drawn at random")
        if not all("!" <= character <= "~" for character in self.secret):
            raise ValueError("the token holds spaces or characters beyond ASCII: HTTP headers cannot carry them")

    @classmethod
    def from_file(cls, path: str | Path) -> BearerToken:
        """Read the token from a file, without the white space around it.

        Raises:
            ValueError: the file cannot be read, or its content is not a token.
        """
        try:
            return cls(Path(path).read_text().strip())
        except (OSError, ValueError) as error:
            raise ValueError(f"token file {path}: {error}") from error

    @property
    def header(self) -> str:
        """Value of the authorization header."""
        return f"Bearer {self.secret}"

    def refusal(self, headers: Sequence[str | bytes]) -> str | None:
        """Return why a call with these authorization headers is refused; None if it carries the token."""
        if len(headers) != 1:
            return REFUSAL.format(what=f"{len(headers)} of them" if headers else "none")
        given = headers[0].encode() if isinstance(headers[0], str) else headers[0]
        # In constant time: how long a refusal takes says nothing about how much of a guess was right.
        return None if hmac.compare_digest(given, self.header.encode()) else REFUSAL.format(what="another one")


class TokenGuard(grpc.ServerInterceptor):
    """Refuses calls without the token, except to open services."""

    def __init__(self, token: BearerToken, open_services: Sequence[str]) -> None:
        self._token = token
        self._open = tuple(f"/{service}/" for service in open_services)

    def intercept_service(
        self, continuation: Callable[[Any], grpc.RpcMethodHandler], handler_call_details: Any
    ) -> grpc.RpcMethodHandler:
        """See grpc.ServerInterceptor."""
        given = [value for key, value in handler_call_details.invocation_metadata if key == _HEADER]
        if handler_call_details.method.startswith(self._open) or (why := self._token.refusal(given)) is None:
            return continuation(handler_call_details)

        # Registered as a stream, whatever the method is, so that no message is read before the token is checked.
        return grpc.stream_stream_rpc_method_handler(lambda _, context: refuse(context, Unauthenticated(why)))


class _CallDetails(
    namedtuple("_CallDetails", ("method", "timeout", "metadata", "credentials", "wait_for_ready", "compression")),
    grpc.ClientCallDetails,
):
    """Details of a call; grpc has only an interface of them."""


class TokenSender(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Adds the token to every call of a channel."""

    def __init__(self, token: BearerToken) -> None:
        self._token = token

    def _send(self, continuation: Callable[[Any, Any], Any], details: Any, request: Any) -> Any:
        metadata = [*(details.metadata or ()), (_HEADER, self._token.header)]
        return continuation(
            _CallDetails(
                details.method,
                details.timeout,
                metadata,
                details.credentials,
                details.wait_for_ready,
                details.compression,
            ),
            request,
        )

    intercept_unary_unary = intercept_unary_stream = intercept_stream_unary = intercept_stream_stream = _send

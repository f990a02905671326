"""Messages of the control door that cannot be decoded.

Left to itself, grpcio answers them with INTERNAL and never lets go of the call: sixteen kilobytes are lost each time,
and the server's stop waits for calls that do not end. So here no decoder fails; what it could not read is refused in
the handler instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc


@dataclass(frozen=True)
class _Undecodable:
    reason: str


class DecodingGuard(grpc.ServerInterceptor):
    """Answers what is no message of the method with INVALID_ARGUMENT."""

    def intercept_service(
        self, continuation: Callable[[Any], grpc.RpcMethodHandler | None], handler_call_details: Any
    ) -> grpc.RpcMethodHandler | None:
        """See grpc.ServerInterceptor."""
        handler = continuation(handler_call_details)
        if handler is None or handler.request_deserializer is None:
            return handler
        kind = ("stream" if handler.request_streaming else "unary") + (
            "_stream" if handler.response_streaming else "_unary"
        )
        checked = _checked_stream if handler.request_streaming else _checked
        return getattr(grpc, f"{kind}_rpc_method_handler")(
            checked(getattr(handler, kind)), _never_failing(handler.request_deserializer), handler.response_serializer
        )


def _never_failing(decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def decode_or_tell(content: bytes) -> Any:
        try:
            return decode(content)
        except Exception as error:  # DecodeError, or UnicodeDecodeError for text that is not UTF-8
            return _Undecodable(str(error))

    return decode_or_tell


def _checked(method: Callable[[Any, grpc.ServicerContext], Any]) -> Callable[[Any, grpc.ServicerContext], Any]:
    return lambda request, context: method(_decoded(request, context), context)


def _checked_stream(
    method: Callable[[Iterator[Any], grpc.ServicerContext], Any],
) -> Callable[[Iterator[Any], grpc.ServicerContext], Any]:
    return lambda requests, context: method((_decoded(request, context) for request in requests), context)


def _decoded(request: Any, context: grpc.ServicerContext) -> Any:
    if isinstance(request, _Undecodable):
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"the message cannot be decoded: {request.reason:.200}")
    return request

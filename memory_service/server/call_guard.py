"""Admission of calls at the control door: a share of the calls for each client, and a valid message in time.

By default, grpcio waits for the message of a call for ever, in one of its threads. A message that it cannot decode it
answers with INTERNAL and never frees the call: 16 KiB are lost each time, and the server's stop waits for calls that do
not end. So every method is registered as one that takes a stream, and the messages are read here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc

from memory_service.errors import ResourceExhausted
from memory_service.protocol.status import refuse
from memory_service.server.limits import Admission, client_of


@dataclass(frozen=True)
class _Undecodable:
    reason: str


class CallGuard(grpc.ServerInterceptor):
    """Refuses a client's calls beyond its share, and calls whose messages are late or cannot be decoded."""

    def __init__(self, admission: Admission, message_seconds: float) -> None:
        self._admission = admission
        self._message_seconds = message_seconds

    def intercept_service(
        self, continuation: Callable[[Any], grpc.RpcMethodHandler | None], handler_call_details: Any
    ) -> grpc.RpcMethodHandler | None:
        """See grpc.ServerInterceptor."""
        handler = continuation(handler_call_details)
        if handler is None or handler.request_deserializer is None:
            return handler
        kind = "stream" if handler.response_streaming else "unary"
        return getattr(grpc, f"stream_{kind}_rpc_method_handler")(
            self._guarded(handler), _reporting(handler.request_deserializer), handler.response_serializer
        )

    def _guarded(self, handler: Any) -> Callable[[Iterator[Any], grpc.ServicerContext], Any]:
        method = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream

        def run(requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
            self._admit(context)
            messages = self._read(requests, context)
            return method(messages if handler.request_streaming else _only(messages, context), context)

        return run

    def _admit(self, context: grpc.ServicerContext) -> None:
        try:
            give_back = self._admission.call(client_of(context))
        except ResourceExhausted as error:
            refuse(context, error)
        if not context.add_callback(give_back):
            give_back()  # the call has ended already

    def _read(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        """Yield the messages of a call; if one is late, cancel the call, which makes reading raise."""
        while True:
            late = threading.Timer(self._message_seconds, context.cancel)
            late.start()
            try:
                message = next(requests)
            except StopIteration:
                return
            finally:
                late.cancel()
            if isinstance(message, _Undecodable):
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"the message cannot be decoded: {message.reason:.200}")
            yield message


def _only(messages: Iterator[Any], context: grpc.ServicerContext) -> Any:
    for message in messages:
        return message
    return context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the call has no message: send one")


def _reporting(decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def decode_or_report(content: bytes) -> Any:
        try:
            return decode(content)
        except Exception as error:  # DecodeError, or UnicodeDecodeError for text that is not UTF-8
            return _Undecodable(str(error))

    return decode_or_report

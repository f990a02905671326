"""Methods of a gRPC service that answer errors with their codes."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import grpc

from memory_service.errors import MemoryServiceError
from memory_service.protocol.status import refuse

_log = logging.getLogger(__name__)
_Method = TypeVar("_Method", bound=Callable[..., Any])


def answering(method: _Method) -> _Method:
    """Make a method answer errors with their gRPC codes."""

    @functools.wraps(method)
    def answer(self: Any, request: Any, context: grpc.ServicerContext) -> Any:
        try:
            return method(self, request, context)
        except MemoryServiceError as error:
            refuse(context, error)
        except Exception as error:
            _log.exception("%s failed", method.__name__)
            context.abort(grpc.StatusCode.INTERNAL, f"{method.__name__} failed, see the shard's log: {error!r}")

    return answer  # type: ignore[return-value]

"""Rows over gRPC in Python: raw bytes both ways, one `numpy.take` on the server; a call for each lookup, or one stream.

`python -m benchmarks.rivals.plain_grpc TABLE.npy` serves both and prints the port.
"""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Iterable, Iterator
from concurrent import futures

import grpc
import numpy as np

SERVICE = "plain.Rows"
UNARY, STREAMING = f"/{SERVICE}/Lookup", f"/{SERVICE}/Stream"
OPTIONS = [("grpc.max_send_message_length", 1 << 28), ("grpc.max_receive_message_length", 1 << 28)]


class UnaryClient:
    """Client with a unary call for each lookup; ids and rows travel as they lie in memory."""

    def __init__(self, address: str, row_bytes: int):
        self._channel = grpc.insecure_channel(address, OPTIONS)
        self._call = self._channel.unary_unary(UNARY)
        self._row_bytes = row_bytes

    def lookup(self, rows: np.ndarray) -> np.ndarray:
        """Row ids [n] -> packed rows [n, row_bytes]."""
        return np.frombuffer(self._call(rows.tobytes()), np.uint8).reshape(-1, self._row_bytes)

    def close(self) -> None:
        """End the connection."""
        self._channel.close()


class StreamingClient:
    """Client with one bidirectional stream, which stays open: a message for each lookup, and one for its rows."""

    def __init__(self, address: str, row_bytes: int):
        self._channel = grpc.insecure_channel(address, OPTIONS)
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._replies = self._channel.stream_stream(STREAMING)(iter(self._outbox.get, None))
        self._row_bytes = row_bytes

    def lookup(self, rows: np.ndarray) -> np.ndarray:
        """Row ids [n] -> packed rows [n, row_bytes]."""
        self._outbox.put(rows.tobytes())
        return np.frombuffer(next(self._replies), np.uint8).reshape(-1, self._row_bytes)

    def close(self) -> None:
        """End the stream and the connection."""
        self._outbox.put(None)
        self._channel.close()


def main() -> None:
    """Serve a table until standard input closes."""
    table = np.load(sys.argv[1])

    def lookup(request: bytes, context: grpc.ServicerContext) -> bytes:
        return table.take(np.frombuffer(request, np.int64), axis=0).tobytes()

    def stream(requests: Iterable[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        return (lookup(request, context) for request in requests)

    methods = {
        "Lookup": grpc.unary_unary_rpc_method_handler(lookup),
        "Stream": grpc.stream_stream_rpc_method_handler(stream),
    }
    server = grpc.server(futures.ThreadPoolExecutor(2), options=[*OPTIONS, ("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    threading.Thread(target=sys.stdin.read, daemon=True).run()
    server.stop(1)


if __name__ == "__main__":
    main()

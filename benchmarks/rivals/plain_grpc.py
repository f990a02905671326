"""Rows over one unary gRPC method in Python: raw bytes both ways, one `numpy.take` on the server.

`python -m benchmarks.rivals.plain_grpc TABLE.npy` serves it and prints the port.
"""

from __future__ import annotations

import sys
import threading
from concurrent import futures

import grpc
import numpy as np

METHOD = "/plain.Rows/Lookup"
OPTIONS = [("grpc.max_send_message_length", 1 << 28), ("grpc.max_receive_message_length", 1 << 28)]


class PlainGrpcClient:
    """Asks the server below; ids and rows travel as they lie in memory."""

    def __init__(self, address: str, row_bytes: int):
        self._call = grpc.insecure_channel(address, OPTIONS).unary_unary(METHOD)
        self._row_bytes = row_bytes

    def lookup(self, rows: np.ndarray) -> np.ndarray:
        """Row ids [n] -> packed rows [n, row_bytes]."""
        return np.frombuffer(self._call(rows.tobytes()), np.uint8).reshape(-1, self._row_bytes)


def main() -> None:
    """Serve a table until standard input closes."""
    table = np.load(sys.argv[1])

    def lookup(request: bytes, context: grpc.ServicerContext) -> bytes:
        return table.take(np.frombuffer(request, np.int64), axis=0).tobytes()

    handler = grpc.method_handlers_generic_handler(
        "plain.Rows", {"Lookup": grpc.unary_unary_rpc_method_handler(lookup)}
    )
    server = grpc.server(futures.ThreadPoolExecutor(2), options=[*OPTIONS, ("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((handler,))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    threading.Thread(target=sys.stdin.read, daemon=True).run()
    server.stop(1)


if __name__ == "__main__":
    main()

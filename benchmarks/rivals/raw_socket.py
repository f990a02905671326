"""Rows over a bare TCP socket: length-prefixed frames, one `numpy.take` on the server, a thread for each connection.

`python -m benchmarks.rivals.raw_socket TABLE.npy` serves it and prints the port. No checks, errors or deadlines:
the cost of network and copies alone, and so a bound for any protocol in Python.
"""

from __future__ import annotations

import socket
import struct
import sys
import threading

import numpy as np

_LENGTH = struct.Struct("<Q")


class RawSocketClient:
    """Client of the server below; ids and rows travel as they lie in memory."""

    def __init__(self, address: tuple[str, int], row_bytes: int):
        self._socket = socket.create_connection(address)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._row_bytes = row_bytes

    def lookup(self, rows: np.ndarray) -> np.ndarray:
        """Row ids [n] -> packed rows [n, row_bytes]."""
        self._socket.sendall(_LENGTH.pack(rows.nbytes) + rows.tobytes())
        found = np.empty((_read_length(self._socket) // self._row_bytes, self._row_bytes), np.uint8)
        _read_into(self._socket, found.data.cast("B"))
        return found

    def close(self) -> None:
        """End the connection."""
        self._socket.close()


def main() -> None:
    """Serve a table until standard input closes."""
    table = np.load(sys.argv[1])
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    threading.Thread(target=_accept, args=(listener, table), daemon=True).start()
    sys.stdin.read()


def _accept(listener: socket.socket, table: np.ndarray) -> None:
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=_answer, args=(connection, table), daemon=True).start()


def _answer(connection: socket.socket, table: np.ndarray) -> None:
    ids, found = np.empty(0, np.int64), np.empty((0, table.shape[1]), np.uint8)
    while size := _read_length(connection):
        count = size // ids.itemsize
        if count > len(ids):  # both buffers are kept, as new memory costs a page fault for every 4 KiB
            ids, found = np.empty(count, np.int64), np.empty((count, table.shape[1]), np.uint8)
        _read_into(connection, ids[:count].data.cast("B"))
        np.take(table, ids[:count], axis=0, out=found[:count], mode="clip")
        connection.sendall(_LENGTH.pack(found[:count].nbytes))
        connection.sendall(found[:count].data)


def _read_length(connection: socket.socket) -> int:
    """Length of the next frame; 0 once the peer has closed the connection."""
    header = connection.recv(_LENGTH.size, socket.MSG_WAITALL)
    return _LENGTH.unpack(header)[0] if header else 0


def _read_into(connection: socket.socket, view: memoryview) -> None:
    while view:
        view = view[connection.recv_into(view, len(view), socket.MSG_WAITALL) :]


if __name__ == "__main__":
    main()

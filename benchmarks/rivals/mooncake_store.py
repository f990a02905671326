"""Rows in Mooncake's EngramStore, over TCP: one head whose embeddings are the bytes of packed rows, as float32.

`python -m benchmarks.rivals.mooncake_store TABLE.npy PORT` runs the store that holds the table beside the master that
listens on the port, until standard input closes.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.servers import Server, free_ports

_START_SECONDS = 20.0
_LAYER = 1
_HEADROOM = 1 << 28  # bytes beside the table: its segments are not filled to the last byte


class MooncakeClient:
    """Client of the store; the largest lookup has `most_rows`."""

    def __init__(self, master: int, shape: tuple[int, ...], most_rows: int):
        self._row_bytes = shape[1]
        self._client = _store(master, 0, most_rows * shape[1])
        self._table = _table(self._client, shape)

    def lookup(self, rows: np.ndarray) -> np.ndarray:
        """Row ids [n] -> packed rows [n, row_bytes]."""
        return self._table.lookup(rows.reshape(1, -1, 1)).view(np.uint8).reshape(-1, self._row_bytes)

    def close(self) -> None:
        """End the connection."""
        self._client.close()


def missing() -> str | None:
    """What must be installed before Mooncake can take part; None if nothing."""
    if find_spec("mooncake") is None:
        return "`apt-get install libibverbs1 librdmacm1 libnuma1` and `pip install mooncake-transfer-engine-non-cuda`"
    return None


@contextlib.contextmanager
def mooncake_master() -> Iterator[Server]:
    """Run the master, whose metadata lie on the port after its own."""
    (port,) = free_ports(1)
    options = [
        f"-port={port}",
        "-enable_http_metadata_server=true",
        "-http_metadata_server_host=127.0.0.1",
        f"-http_metadata_server_port={port + 1}",
    ]
    command = [str(Path(sys.executable).with_name("mooncake_master")), *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as master:
        try:
            _await(_metadata(port))
            yield Server(port, master.pid)
        finally:
            master.kill()


def main() -> None:
    """Serve a table until standard input closes."""
    packed, master = np.load(sys.argv[1]), int(sys.argv[2])
    store = _store(master, packed.nbytes + _HEADROOM, packed.nbytes + _HEADROOM)
    _table(store, packed.shape).populate([packed.view(np.float32)])
    print(master, flush=True)
    threading.Thread(target=sys.stdin.read, daemon=True).run()
    os._exit(0)  # its threads do not end by themselves


def _table(store: Any, shape: tuple[int, ...]) -> Any:
    from mooncake.store import EngramStore, EngramStoreConfig

    config = EngramStoreConfig()
    config.table_vocab_sizes, config.embedding_dim = [shape[0]], shape[1] // np.dtype(np.float32).itemsize
    return EngramStore(_LAYER, config, store)


def _store(master: int, segment_bytes: int, buffer_bytes: int) -> Any:
    from mooncake.store import MooncakeDistributedStore

    store = MooncakeDistributedStore()
    host, (port,) = "127.0.0.1", free_ports(1)
    failed = store.setup(
        f"{host}:{port}", _metadata(master), segment_bytes, buffer_bytes, "tcp", "", f"{host}:{master}"
    )
    if failed:
        raise RuntimeError(f"Mooncake's store did not start: code {failed}")
    return store


def _metadata(master: int) -> str:
    return f"http://127.0.0.1:{master + 1}/metadata"


def _await(url: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            urllib.request.urlopen(url, timeout=1).close()
            return
        except urllib.error.HTTPError:
            return  # it answers
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


if __name__ == "__main__":
    main()

"""Clients that look rows up while a test does something to the shards."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager

import numpy as np

from memory_service import MemoryClient


@contextmanager
def lookups(address, reference, clients=2):
    """Clients that look rows up all the while, and compare every row; a list of what went wrong, and a counter."""
    wrong, done, over = [], [0], threading.Event()

    def work(seed, client):
        rng = np.random.default_rng(seed)
        try:
            while not over.is_set():
                for table, spec in reference.specs.items():
                    ids = rng.integers(0, spec.rows, 200)
                    got, want = client.lookup(table, ids).result(), reference.lookup(table, ids).result()
                    assert (got.unique[got.inverse] == want.unique[want.inverse]).all()
                    done[0] += 1
        except BaseException as error:
            wrong.append(error)
        finally:
            client.close()

    joined = [MemoryClient.connect(address) for _ in range(clients)]
    threads = [threading.Thread(target=work, args=numbered) for numbered in enumerate(joined)]
    for thread in threads:
        thread.start()
    try:
        yield wrong, done
    finally:
        over.set()
        for thread in threads:
            thread.join()


def progress(done):
    """Wait until a few more lookups were answered."""
    goal, deadline = done[0] + 10, time.monotonic() + 30
    while done[0] < goal:
        assert time.monotonic() < deadline, "the lookups have stopped"
        time.sleep(0.01)

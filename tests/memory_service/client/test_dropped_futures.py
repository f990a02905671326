"""Lookups whose futures nobody keeps, only what is to be called once they are done."""

from __future__ import annotations

import gc
import threading

import numpy as np

from memory_service import OldVersion


def test_a_callback_is_called_although_nobody_keeps_the_future(cluster, spec, implementation):
    """Also where the lookup does not go the plain way, here because the shard is older than what is asked for."""
    client = cluster.start(2).connect()
    ids = np.arange(0, spec.rows, 7)
    client.lookup(spec.name, ids).result()  # streams are open: what follows begins as a plain lookup
    for number in range(20):
        outcome, done = [], threading.Event()

        def note(future, outcome=outcome, done=done):
            outcome.append(type(future.exception()))
            done.set()

        client.lookup(spec.name, ids + number % 3, min_version=9 if number % 2 else 0).add_done_callback(note)
        gc.collect()
        assert done.wait(20), f"lookup {number} was forgotten"
        assert outcome == [OldVersion if number % 2 else type(None)]

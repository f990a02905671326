"""A change of placement that is given up while shards prepare it."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from memory_service import Placement, ShardAddress, TableSpec
from memory_service.control.cancellation import Cancellation, Cancelled
from memory_service.control.reshape import reshape
from memory_service.server.server import ShardServer
from memory_service.shard.shard import Shard


class Stalling(Shard):
    """A shard whose first preparation waits for the test to end."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.preparing, self.over = threading.Event(), threading.Event()

    def prepare(self, *args):  # type: ignore[no-untyped-def]
        if not self.preparing.is_set():
            self.preparing.set()
            self.over.wait()
        return super().prepare(*args)


@pytest.fixture
def stalling(cluster) -> Iterator[Stalling]:
    shard = Stalling("shard-0")
    yield shard
    shard.over.set()


def test_a_cancelled_reshape_ends_at_once_and_another_one_succeeds(
    cluster, stalling: Stalling, spec: TableSpec
) -> None:
    server = cluster.add(ShardServer(stalling).start())
    target = Placement.build(1, [ShardAddress("shard-0", server.address)], [spec])
    cancellation, errors = Cancellation(), []

    def change() -> None:
        with pytest.raises(Cancelled, match=f"shard-0 at {server.address}") as raised:
            reshape(None, target, cluster.snapshot, cancellation=cancellation)
        errors.append(raised)

    thread = threading.Thread(target=change)
    thread.start()
    assert stalling.preparing.wait(30)
    cancellation.cancel()
    thread.join()  # the shard has not answered yet
    assert len(errors) == 1
    assert stalling.placement is None
    follower = target.evolve(2, target.shards)
    assert reshape(None, follower, cluster.snapshot).epoch == 2
    assert stalling.epoch == 2


def test_a_reshape_that_was_cancelled_before_it_began_asks_no_shard(cluster, spec: TableSpec) -> None:
    server = cluster.add(ShardServer(Shard("shard-0")).start())
    target = Placement.build(1, [ShardAddress("shard-0", server.address)], [spec])
    cancellation = Cancellation()
    cancellation.cancel()
    with pytest.raises(Cancelled):
        reshape(None, target, cluster.snapshot, cancellation=cancellation)
    assert server.shard.placement is None
    assert server.shard.tables == {}

"""What of a node each reasoning worker gets."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

ray = pytest.importorskip("ray")

from cluster.workers.actors import _sharing, _threads  # noqa: E402 -- needs ray
from reasoning.engine import EngineConfig  # noqa: E402 -- imported after the skip


def node(name, cpus, alive=True):
    return {"NodeID": name, "Alive": alive, "Resources": {"CPU": cpus} if cpus else {}}


@pytest.mark.parametrize(
    ("nodes", "workers", "threads"),
    [
        ([node("here", 8.0)], 1, 8),
        ([node("here", 8.0)], 3, 2),
        ([node("here", 8.0)], 20, 1),
        ([node("here", 8.0), node("there", 64.0)], 2, 8),
        ([node("here", 8.0), node("there", 64.0)], 3, 4),
        ([node("here", 8.0), node("gone", 8.0, alive=False), node("head", 0)], 2, 4),
        ([node("here", 99.0)], 1, 16),
    ],
)
def test_workers_share_the_processors_of_their_node(monkeypatch, nodes, workers, threads):
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "here"))
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    assert _threads(workers) == threads


def test_workers_share_the_memory_of_their_node_unless_told_otherwise(monkeypatch):
    monkeypatch.setattr(ray, "nodes", lambda: [node("here", 8.0), node("there", 8.0)])
    assert _sharing(EngineConfig(), 4).cache_share == 0.25
    assert _sharing(EngineConfig(), 1).cache_share == 0.5
    assert _sharing(EngineConfig(cache_share=0.7), 4).cache_share == 0.7
    assert _sharing(EngineConfig(device="cuda"), 4).cache_share is None

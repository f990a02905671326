"""The model in models/tiny-code: it loads, knows Python, needs its memory, and says the same however it is run."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks.harness.shipped_held_out import documents_of, held_out_files
from memory_service import MemoryClient, Placement, ShardAddress, Snapshot
from memory_service.server.server import ShardServer
from memory_service.shard.shard import Shard
from reasoning.engine import Engine
from reasoning.engine.config import EngineConfig
from reasoning.request import Request, SamplingParams
from reasoning.runs.evaluation import held_out_loss, xz_bits_per_byte

MODEL = Path(__file__).parents[2] / "models" / "tiny-code"
PROMPTS = [
    "import os\nimport sys\n\n",
    "def __init__(self, name):\n",
    "class Stack:\n    def push(self, item):\n",
    "for key, value in sorted(",
    "    try:\n        return int(text)\n    except ",
    'if __name__ == "__main__":\n',
    "x",
    "# Licensed to PSF under a Contributor Agreement.\n",
    "    def test_append(self):\n        a = ",
    "raise TypeError(",
    "\n\n\n",
    "with open(path, 'rb') as f:\n    data = ",
    "@property\n",
    "return self.",
    "naïve = 'é' + ",
    "assert isinstance(obj, ",
]
REQUESTS = [Request(str(i), prompt, sampling=SamplingParams(max_new_tokens=24)) for i, prompt in enumerate(PROMPTS)]


def answers(engine, requests=REQUESTS):
    try:
        return {result.id: result.token_ids for result in engine.generate(requests)}
    finally:
        engine.close()


@pytest.fixture(scope="module")
def one_by_one():
    return answers(Engine.from_pretrained(MODEL, config=EngineConfig(max_batch=1)))


@pytest.fixture
def serve():
    """Function that serves the model's tables from some shards and returns the first one's address."""
    with ExitStack() as stack:

        def start(count):
            snapshot = MODEL / "memory"
            servers = [stack.enter_context(ShardServer(Shard(f"shard-{i}"))) for i in range(count)]
            places = [ShardAddress(server.shard.name, server.address) for server in servers]
            placement = Placement.build(1, places, Snapshot.open(snapshot).specs.values())
            for server in servers:
                server.shard.prepare(placement, snapshot_uri=snapshot)
                server.shard.activate(placement)
            return servers[0].address

        yield start


def test_it_fits_its_budget():
    assert sum(path.stat().st_size for path in MODEL.rglob("*") if path.is_file()) <= 32e6


@pytest.mark.parametrize("batch", [3, 16])
def test_answers_do_not_depend_on_the_batch(one_by_one, batch):
    assert answers(Engine.from_pretrained(MODEL, config=EngineConfig(max_batch=batch))) == one_by_one


@pytest.mark.parametrize("shards", [1, 3])
def test_answers_do_not_depend_on_where_the_rows_are(one_by_one, serve, shards):
    memory = MemoryClient.connect(serve(shards))
    assert answers(Engine.from_pretrained(MODEL, memory)) == one_by_one
    assert len(memory.stats().shard_rows) == shards


@pytest.mark.slow
def test_kernels_choose_the_tokens_that_references_choose(monkeypatch):
    pytest.importorskip("triton")
    sampling = SamplingParams(max_new_tokens=4)
    requests = [Request(prompt, prompt, sampling=sampling) for prompt in (PROMPTS[0], "return self.")]
    chosen = {}
    for mode in ("torch", "triton"):
        monkeypatch.setenv("ENGRAM_KERNELS", mode)
        chosen[mode] = answers(Engine.from_pretrained(MODEL), requests)
    assert chosen["triton"] == chosen["torch"]


def test_it_beats_xz_and_needs_its_memory():
    """On a few small held-out files; `python -m benchmarks.tiny_code` measures all of them."""
    files = sorted(held_out_files(), key=lambda path: (path.stat().st_size, path))
    files = [path for path in files if path.stat().st_size > 2000][:6]
    engine = Engine.from_pretrained(MODEL)
    documents = documents_of(engine.tokenizer.backend, files)
    with_memory, zeroed = (held_out_loss(engine.model, lookup, documents) for lookup in (engine.lookup, None))
    assert with_memory.bits_per_byte < xz_bits_per_byte([path.read_bytes() for path in files])
    assert with_memory.bits_per_byte < 0.9 * zeroed.bits_per_byte

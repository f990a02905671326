"""The demo of training: two workers and three memory shards on a local Ray, and one of each is killed on the way.

A small model learns this checkout's own Python for two minutes. Run `make train-demo`; the run stays in demo-out/train.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from cluster.cli import guarded
from cluster.training.job import train_on_ray
from memory_service.learning.optimizers import OptimizerConfig
from reasoning.corpora.config import CorpusConfig
from reasoning.engine import Engine
from reasoning.request import Request, SamplingParams
from reasoning.runs.config import CheckpointConfig, ClusterConfig, ModelChoice, RunConfig
from reasoning.runs.parts import MODEL
from reasoning.runs.progress import read_log
from reasoning.training.config import TablesConfig, TrainingConfig

ROOT = Path(__file__).parents[1]
OUTPUT = Path("demo-out") / "train"
MINUTES = 2.0
RUN = RunConfig(
    output=OUTPUT,
    training=TrainingConfig(
        minutes=MINUTES, batch=8, learning_rate=3e-3, tables=TablesConfig(OptimizerConfig("rowwise_adagrad"))
    ),
    model=ModelChoice(
        config={
            "hidden_size": 128,
            "intermediate_size": 352,
            "moe_intermediate_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "kv_lora_rank": 64,
            "qk_nope_head_dim": 24,
            "qk_rope_head_dim": 8,
            "v_head_dim": 32,
            "max_position_embeddings": 512,
            "engram_layer_ids": [1, 2],
            "engram_vocab_size": [8000, 8000],
        }
    ),
    corpus=CorpusConfig(
        sources=tuple(str(ROOT / folder) for folder in ("memory_service", "reasoning", "cluster", "kernels", "tests")),
        vocab_size=4096,
        window=128,
        fim_rate=0.0,
        split="units",
    ),
    checkpoints=CheckpointConfig(minutes=MINUTES / 8),
    cluster=ClusterConfig(workers=2, shards=3),
)
KILLS = ((0.3, "ray::ShardActor"), (0.6, "ray::RayTrainWorker"))
"""When to kill a process, as fractions of the run, and what its title begins with."""
PROMPTS = ("from __future__ import annotations\n\nimport", "def test_", "    def __init__(self")


def main() -> int:
    """Train, print the loss on the way, and continue some prompts with the model."""
    shutil.rmtree(OUTPUT, ignore_errors=True)
    cluster = RUN.cluster
    print(f"Training for {MINUTES:g} minutes: {cluster.workers} workers, {cluster.shards} memory shards", flush=True)
    with _Killer():
        loss = train_on_ray(RUN)
    steps = [line for line in read_log(OUTPUT) if "step" in line]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        near = min(steps, key=lambda step: abs(step["share"] - share))
        print(f"{near['share']:4.0%}  step {near['step']:5}  loss {near['loss']:.3f} nats a token")
    print(f"{loss.bits_per_byte:.3f} bits a byte on {loss.bytes:,} bytes of files held out of training")
    _continue_prompts()
    print(f"loss curve: {OUTPUT / 'loss.svg'}; model: engram generate --model {OUTPUT / MODEL} --prompt 'def '")
    return 0


class _Killer:
    """Kills a shard and a worker of this process's Ray when the run has come so far. A context manager."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> _Killer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        left = list(KILLS)
        while left and not self._ended.wait(0.5):
            share, title = left[0]
            if max((step["share"] for step in read_log(OUTPUT) if "share" in step), default=0.0) >= share:
                if victims := list(descendants(os.getpid(), title)):
                    victim = random.choice(victims)
                    os.kill(victim, signal.SIGKILL)
                    print(f"\n{share:.0%} done: killed {title} (process {victim})", file=sys.stderr, flush=True)
                left.pop(0)


def descendants(pid: int, title: str) -> Iterator[int]:
    """Yield the processes below one whose title begins with a text."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    parents: dict[int, int] = {}
    titles: dict[int, str] = {}
    for line in listed.splitlines():
        number, parent, *title_of = line.split(None, 2)
        parents[int(number)], titles[int(number)] = int(parent), "".join(title_of)
    for process in parents:
        above = process
        while above in parents and above != pid:
            above = parents[above]
        if above == pid and titles[process].startswith(title):
            yield process


def _continue_prompts() -> None:
    engine = Engine.from_pretrained(OUTPUT / MODEL)
    sampling = SamplingParams(max_new_tokens=40, temperature=0.3, top_p=0.95, seed=0)
    try:
        for result in engine.generate([Request(prompt, prompt, sampling=sampling) for prompt in PROMPTS]):
            print(f"{'-' * 80}\n{result.id}{getattr(result, 'text', result)}")
    finally:
        engine.close()
    print("-" * 80)


if __name__ == "__main__":
    started = time.monotonic()
    code = guarded(main)
    print(f"{time.monotonic() - started:.0f} seconds in all")
    sys.exit(code)

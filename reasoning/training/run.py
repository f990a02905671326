"""A complete training run: files in, model directory out."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import torch
from tokenizers import Tokenizer as BpeTokenizer
from tqdm import tqdm

from memory_service import LocalMemory
from reasoning.architectures.base import ModelConfig
from reasoning.checkpoint.load import load_model
from reasoning.engram.hashing import NgramHasher
from reasoning.engram.memory_config import MEMORY_DIR
from reasoning.engram.model_hasher import build_hasher, table_specs
from reasoning.engram.row_lookup import RowLookup
from reasoning.text.tokenizer import Tokenizer
from reasoning.training.corpus import Corpus, Stream, train_tokenizer
from reasoning.training.evaluation import HeldOutLoss, held_out_loss
from reasoning.training.export import export
from reasoning.training.loop import Progress, Trainer, memory_of
from reasoning.training.recipe import TrainingConfig

LOG_FILE = "training.jsonl"
HELD_OUT_BYTES = 128 << 10
"""Size of the held-out files that a run is evaluated on at its end: enough for two digits, within seconds."""
_LOOKUP_TIMEOUT_S = 60.0


def train(model: ModelConfig, config: TrainingConfig, output: Path, data: Path | None = None) -> HeldOutLoss:
    """Train a tokenizer, a backbone and its memory on a folder of Python files, and write `output`.

    Args:
        model: configuration of the backbone; the tokenizer is trained for its vocabulary size.
        config: settings of the run.
        output: model directory, replaced by each export; training.jsonl in it has the loss of every step.
        data: folder of .py files; None for the interpreter's standard library.

    Returns:
        Loss of the exported model on the first held-out files, about HELD_OUT_BYTES of them.

    Raises:
        ValueError: `data` has too few files, or `output` exists and is not the result of a training run.
    """
    _refuse_foreign(output)
    corpus = Corpus.find(data)
    bpe = train_tokenizer(corpus.train, model.vocab_size)
    hasher = build_hasher(memory_of(model), Tokenizer(bpe))
    trainer = Trainer(model, hasher, Stream.encode(bpe, corpus.train), config)
    with _fast_products():
        _Run(trainer, bpe, output).to_the_end()
    return _held_out_loss(output, hasher, Stream.encode(bpe, _first(corpus.held_out)), config.window)


def _first(files: Sequence[Path]) -> list[Path]:
    """Return the first files, as many as it takes to reach HELD_OUT_BYTES."""
    before = itertools.accumulate((path.stat().st_size for path in files), initial=0)
    return [path for path, size in zip(files, before, strict=False) if size < HELD_OUT_BYTES]


def _held_out_loss(model_dir: Path, hasher: NgramHasher, stream: Stream, window: int) -> HeldOutLoss:
    """Evaluate a model directory, with its weights and rows as they were rounded for it."""
    model = load_model(model_dir)
    with closing(LocalMemory.load(str(model_dir / MEMORY_DIR))) as memory:
        lookup = RowLookup(hasher, table_specs(memory_of(model.config), hasher), memory, _LOOKUP_TIMEOUT_S)
        return held_out_loss(model, lookup, stream, window)


@contextmanager
def _fast_products() -> Iterator[None]:
    """Multiply in bf16 where the CPU supports it, accumulating in fp32; restores exact products afterwards."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class _Run:
    """Progress bar, log and exports of a run."""

    def __init__(self, trainer: Trainer, bpe: BpeTokenizer, output: Path):
        self.trainer, self.bpe, self.output = trainer, bpe, output
        self.log: list[str] = []
        self.exported = time.monotonic()
        self.bar = tqdm(total=100, unit="%", bar_format="{l_bar}{bar}| {elapsed}<{remaining}{postfix}")

    def to_the_end(self) -> None:
        with self.bar:
            self.trainer.run(self.on_step)
        self.export()

    def on_step(self, progress: Progress) -> None:
        self.log.append(json.dumps(vars(progress)))
        self.bar.update(100 * progress.share - self.bar.n)
        self.bar.set_postfix(step=progress.step, loss=f"{progress.loss:.3f}", tokens=f"{progress.tokens:,}")
        if time.monotonic() - self.exported > 60 * self.trainer.config.export_minutes:
            self.export()

    def export(self) -> None:
        export(self.trainer, self.bpe, self.output)
        (self.output / LOG_FILE).write_text("\n".join(self.log) + "\n")
        self.exported = time.monotonic()


def _refuse_foreign(output: Path) -> None:
    """Refuse a directory that no training run wrote, because exports replace it."""
    if output.exists() and not (output / LOG_FILE).is_file():
        raise ValueError(f"output: {output} exists and was not written by a training run; choose another directory")

"""A folder of small Python files, and what is made of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer as BpeTokenizer

from reasoning.engram.hashing import NgramHasher
from reasoning.engram.model_hasher import build_hasher
from reasoning.text.tokenizer import Tokenizer
from reasoning.training.corpus import Corpus, Stream, train_tokenizer
from reasoning.training.recipe import TINY_CODE, TrainingConfig

FILES = 60
assert TINY_CODE.engram is not None
MEMORY = dataclasses.replace(TINY_CODE.engram, layer_ids=(0, 2), n_heads=2, vocab_size=(500, 500))
MODEL = dataclasses.replace(
    TINY_CODE,
    vocab_size=300,
    hidden_size=32,
    intermediate_size=64,
    moe_intermediate_size=16,
    num_hidden_layers=3,
    n_routed_experts=4,
    kv_lora_rank=16,
    qk_nope_head_dim=8,
    qk_rope_head_dim=8,
    v_head_dim=8,
    max_position_embeddings=64,
    engram=MEMORY,
)
RUN = TrainingConfig(steps=40, window=32, batch=4, learning_rate=5e-3)


def source(number: int) -> str:
    """Regular enough to be learned in seconds, and different in every file."""
    lines = [f'"""Module number {number}."""', "", "import math", ""]
    for i in range(5 + number % 7):
        lines += [f"def function_{number}_{i}(value):", f"    return math.sqrt(value + {i * number})", ""]
    return "\n".join(lines)


@pytest.fixture(scope="session")
def corpus_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpus")
    for number in range(FILES):
        path = root / f"package_{number % 4}" / f"module_{number}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(source(number))
    return root


@pytest.fixture(scope="session")
def corpus(corpus_dir: Path) -> Corpus:
    return Corpus.find(corpus_dir)


@pytest.fixture(scope="session")
def bpe(corpus: Corpus) -> BpeTokenizer:
    return train_tokenizer(corpus.train, 300)


@pytest.fixture(scope="session")
def parts(bpe: BpeTokenizer, corpus: Corpus) -> tuple[NgramHasher, Stream]:
    """What a Trainer of MODEL takes besides its configurations."""
    return build_hasher(MEMORY, Tokenizer(bpe)), Stream.encode(bpe, corpus.train)


@pytest.fixture
def by_torch_and_by_kernels(monkeypatch):
    """Function that calls another with references forced, then with kernels forced and no reference for rows."""
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("training is on the CPU, where kernels run in the interpreter alone")

    def run(function):
        monkeypatch.setenv("ENGRAM_KERNELS", "torch")
        expected = function()
        monkeypatch.setenv("ENGRAM_KERNELS", "triton")
        monkeypatch.setattr("kernels.row_unpack.F", None)
        return expected, function()

    return run

"""Tiny random models as directories."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file
from tokenizers import decoders, models, pre_tokenizers

from memory_service import TableSpec, pack_rows, write_snapshot
from reasoning.architectures.deepseek_v3.backbone import DeepseekV3Backbone
from reasoning.architectures.deepseek_v3.config import DeepseekV3Config
from reasoning.checkpoint.files import SINGLE
from reasoning.checkpoint.save import save_model
from reasoning.engram.model_hasher import build_hasher, table_specs
from reasoning.text.tokenizer import Tokenizer

END = 256  # of the byte-level tokenizer: the one id that is no byte
TINY = {
    "vocab_size": 257,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "n_shared_experts": 1,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": None,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "eos_token_id": END,
}
TINY_ENGRAM = {
    "engram_layer_ids": [0, 2],
    "engram_max_ngram_size": 3,
    "engram_n_heads": 2,
    "engram_head_dim": 32,
    "engram_vocab_size": 500,
    "engram_pad_token_id": END,
    "engram_conv_kernel": 4,
    "engram_row_format": "fp8_e4m3_ue8m0",
}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # tensors this small gain nothing from a second thread but waiting for it


def byte_tokenizer(*more: str, reverse: bool = False) -> tokenizers.Tokenizer:
    """Every byte is a token, in either order, id 256 is the special end token, then `more`."""
    vocab = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=reverse))}
    backend = tokenizers.Tokenizer(models.BPE(vocab, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<end>"])
    backend.add_tokens(list(more))
    return backend


def random_model(config: DeepseekV3Config, seed: int = 1) -> DeepseekV3Backbone:
    model = DeepseekV3Backbone(config).initialise(torch.Generator().manual_seed(seed)).eval()
    for layer in model.layers:
        if layer.engram is not None and layer.engram.conv is not None:  # zero, as initialised, would hide it
            torch.nn.init.normal_(layer.engram.conv.weight, 0, 0.3)
    return model


def change_tensors(directory: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Rewrite the tensors of a single-file checkpoint."""
    tensors = load_file(directory / SINGLE)
    edit(tensors)
    save_file(tensors, directory / SINGLE)


def random_rows(spec: TableSpec) -> np.ndarray:
    values = np.random.default_rng(spec.layer).standard_normal((spec.rows, spec.dim), np.float32)
    return pack_rows(values, spec.row_format)


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with two Engram layers, its tokenizer and its memory. Copy it before changing it."""
    directory = tmp_path_factory.mktemp("tiny")
    config = DeepseekV3Config.from_dict({**TINY, **TINY_ENGRAM})
    torch.manual_seed(1)
    save_model(random_model(config), directory, dtype=torch.float32)
    byte_tokenizer().save(str(directory / "tokenizer.json"))
    hasher = build_hasher(config.engram, Tokenizer.from_file(directory))
    write_snapshot(directory / "memory", {spec: random_rows(spec) for spec in table_specs(config.engram, hasher)})
    return directory


@pytest.fixture(scope="session")
def plain_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model without Engram layers and without a tokenizer."""
    directory = tmp_path_factory.mktemp("plain")
    save_model(random_model(DeepseekV3Config.from_dict(TINY)), directory, dtype=torch.float32)
    return directory

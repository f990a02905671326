"""A tiny random model that answers in milliseconds, with Engram layers, a tokenizer and a snapshot."""

from __future__ import annotations

import json
import os

os.environ["RAY_AUTH_MODE"] = "disabled"  # read when ray is imported
os.environ.pop("RAY_ADDRESS", None)

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer as BpeTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from cluster.ray_runtime import ray_session
from memory_service import pack_rows, write_snapshot
from reasoning.architectures.deepseek_v3.backbone import DeepseekV3Backbone
from reasoning.architectures.deepseek_v3.config import DeepseekV3Config
from reasoning.checkpoint.save import save_model
from reasoning.config.engram import EngramConfig
from reasoning.engram.model_hasher import build_hasher, table_specs
from reasoning.text.tokenizer import Tokenizer

TINY = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": None,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
ENGRAM = EngramConfig(layer_ids=(0, 2), n_heads=2, head_dim=8, vocab_size=(40000, 40000), conv_kernel=2)


def write_model(directory, config, tokenizer=None):
    """Write a random model, whose tables matter to what it says."""
    model = DeepseekV3Backbone(config).initialise(torch.Generator().manual_seed(0))
    save_model(model, directory, torch.float32)
    if tokenizer is not None:
        tokenizer.save(str(directory / "tokenizer.json"))
    if config.engram is not None:
        rng = np.random.default_rng(0)
        specs = table_specs(config.engram, build_hasher(config.engram, Tokenizer(tokenizer)))
        rows = {spec: rng.standard_normal((spec.rows, spec.dim), dtype=np.float32) for spec in specs}
        write_snapshot(
            directory / "memory", {spec: pack_rows(values, spec.row_format) for spec, values in rows.items()}
        )


def train_bpe():
    tokenizer = BpeTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TINY["vocab_size"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(["def add(left, right):\n    return left + right\n" * 20], trainer)
    return tokenizer


@pytest.fixture(scope="session")
def cluster():
    """A Ray cluster of one node with four CPUs, to which tests may add others."""
    from ray.cluster_utils import Cluster

    impatient = {
        "health_check_period_ms": 500,  # a node is lost once it has failed five checks, by default 3 s apart
        "kill_worker_timeout_milliseconds": 500,  # a process that hangs is killed so long after it was told to end
    }
    head = {"num_cpus": 4, "object_store_memory": 128 << 20, "_system_config": impatient}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def ray(cluster):
    """The `ray` module, connected to the cluster; tests of other modules find themselves without a connection."""
    with ray_session(cluster.address) as ray:
        yield ray


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """Directory of a model with two Engram layers and a tokenizer."""
    tokenizer = train_bpe()
    directory = tmp_path_factory.mktemp("tiny")
    config = DeepseekV3Config(**{**TINY, "engram": ENGRAM, "vocab_size": tokenizer.get_vocab_size()})
    write_model(directory, config, tokenizer)
    return directory


@pytest.fixture(scope="session")
def plain_model(tmp_path_factory):
    """Directory of a model without Engram layers and without a tokenizer."""
    directory = tmp_path_factory.mktemp("plain")
    write_model(directory, DeepseekV3Config(**TINY))
    return directory


@pytest.fixture(scope="session")
def write_prompts():
    """Function that writes `count` input lines, with prompts of different lengths."""

    def write(path, count):
        lines = [{"id": f"p{i}", "prompt": f"def f{i}(x):" + " return x" * (i % 7)} for i in range(count)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path

    return write


@pytest.fixture(scope="session")
def read_records():
    """Function that reads an output file."""
    return lambda path: [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(autouse=True)
def _one_thread():
    """One thread: two, for a tiny model on a busy machine, wait for each other."""
    torch.set_num_threads(1)

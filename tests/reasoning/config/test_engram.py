"""Engram layers of any config.json: keys to fields and back, and bounds that hold without a checkpoint."""

from __future__ import annotations

import dataclasses
import json

import pytest

from reasoning.config.engram import EngramConfig, check_keys
from tests.reasoning.conftest import TINY_ENGRAM

CONFIG = EngramConfig(layer_ids=(0, 2), n_heads=2, head_dim=32, vocab_size=(500, 300))


def test_what_is_written_reads_back_equal():
    assert EngramConfig.from_dict(json.loads(json.dumps(CONFIG.to_dict()))) == CONFIG
    assert EngramConfig.from_dict(TINY_ENGRAM).vocab_size == (500, 500)
    assert set(TINY_ENGRAM) <= set(CONFIG.to_dict())


@pytest.mark.parametrize("layers", [None, []])
def test_a_model_that_names_no_layers_has_no_memory(layers):
    assert EngramConfig.from_dict({**TINY_ENGRAM, "engram_layer_ids": layers}) is None
    assert EngramConfig.from_dict({"vocab_size": 7}) is None


def test_sizes_follow_from_the_geometry():
    config = dataclasses.replace(CONFIG, max_ngram_size=4, vocab_size=(500,) * 3, conv_kernel=3)
    assert (config.columns, config.width, config.conv_history) == (6, 192, 8)
    assert dataclasses.replace(config, conv_kernel=0).conv_history == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_ids": ()}, r"engram_layer_ids: \(\) is not supported; expected layers in ascending order"),
        ({"max_ngram_size": 17, "vocab_size": (5,) * 16}, "engram_max_ngram_size: 17 .* 16 at most"),
        ({"n_heads": 1 << 20}, "engram_n_heads: 1048576 .* 16384 at most, with 2 layers of 2 orders"),
        ({"vocab_size": (500, 1 << 60)}, "engram_vocab_size: .* numbers of at most"),
        ({"row_format": "fp8_e4m3_ue8m0", "head_dim": 24}, "engram_head_dim: 24 .* a multiple of 32"),
    ],
)
def test_what_is_refused_names_the_key_of_the_file(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **changes)


@pytest.mark.parametrize(("vocab_size", "layers", "key"), [(9, 2, "engram_layer_ids"), (0, 3, "engram_pad_token_id")])
def test_a_memory_must_fit_its_backbone(vocab_size, layers, key):
    CONFIG.check_backbone(9, 3)
    with pytest.raises(ValueError, match=key):
        CONFIG.check_backbone(vocab_size, layers)


def test_a_misspelt_key_is_refused_and_a_published_one_without_a_field_is_not():
    check_keys({**TINY_ENGRAM, "engram_num_embeddings": 7, "hidden_size": 3})
    with pytest.raises(ValueError, match=r"engram_head_dims: 32 .* a known engram_\* key; check its spelling"):
        check_keys({"engram_head_dims": 32})

from __future__ import annotations

import json

import pytest

from reasoning.engram.memory_config import read_memory_config

RELEASED = {  # DeepSeek-V4.1-Flash: its backbone is not one that is implemented
    "model_type": "deepseek_v41",
    "hc_mult": 4,
    "vocab_size": 129280,
    "num_hidden_layers": 43,
    "engram_max_ngram_size": 4,
    "engram_n_heads": 8,
    "engram_layer_ids": [1, 14],
    "engram_vocab_size": 16000000,
    "engram_num_embeddings": [384006168, 384016682],
    "engram_compressed_vocab_size": 99092,
    "engram_pad_token_id": 2,
    "engram_of_a_later_release": True,
}


def write(directory, content):
    (directory / "config.json").write_text(content if isinstance(content, str) else json.dumps(content))


def test_a_memory_is_read_beside_a_foreign_backbone(tmp_path):
    write(tmp_path, RELEASED)
    config = read_memory_config(tmp_path, head_dim=256)
    assert config.layer_ids == (1, 14)
    assert config.vocab_size == (16_000_000,) * 3
    assert config.head_dim == 256
    assert config.compressed_vocab_size == 99092


def test_the_text_part_of_a_model_that_sees_images_is_read(tmp_path):
    write(tmp_path, {"model_type": "deepseek_v41", "text_config": RELEASED, "vision_config": {"depth": 2}})
    assert read_memory_config(tmp_path, head_dim=256).layer_ids == (1, 14)


def test_a_width_that_the_file_gives_stands(tmp_path):
    write(tmp_path, RELEASED | {"engram_head_dim": 128})
    assert read_memory_config(tmp_path, head_dim=256).head_dim == 128


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        ("{", "not valid JSON"),
        ([], "no engram_layer_ids"),
        ({"vocab_size": 10}, "no engram_layer_ids"),
        (RELEASED | {"engram_n_heads": "8"}, "engram_n_heads: '8'"),
    ],
)
def test_what_is_no_memory_is_named(tmp_path, content, words):
    if content is not None:
        write(tmp_path, content)
    with pytest.raises(ValueError, match=words):
        read_memory_config(tmp_path)

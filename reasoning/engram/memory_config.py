"""What a model's memory is made of, read from any `config.json` that has the `engram_*` keys."""

from __future__ import annotations

from pathlib import Path

from reasoning.architectures.deepseek_v3.config import ModelConfig
from reasoning.config.json_file import read_config

_KEYS = {
    "vocab_size",
    "num_hidden_layers",
    "engram_layer_ids",
    "engram_max_ngram_size",
    "engram_n_heads",
    "engram_head_dim",
    "engram_vocab_size",
    "engram_pad_token_id",
    "engram_compressed_vocab_size",
    "engram_row_format",
}


def read_memory_config(model_dir: str | Path, head_dim: int | None = None) -> ModelConfig:
    """Return a configuration whose memory is that of `model_dir`, and whose backbone means nothing.

    The backbone may therefore be one that this project cannot run. `head_dim` stands in where the file has no
    engram_head_dim.

    Raises:
        ValueError: there is no such file, it is not JSON, or it describes no memory.
    """
    raw = read_config(model_dir, remedy="copy it from the checkpoint, or name a preset")
    raw = raw.get("text_config", raw) if isinstance(raw, dict) else raw  # where a model also sees images
    if not isinstance(raw, dict) or not raw.get("engram_layer_ids"):
        raise ValueError(
            f"{model_dir}/config.json has no engram_layer_ids, so no memory; give another model, or name a preset"
        )
    values = {key: value for key, value in raw.items() if key in _KEYS}
    return ModelConfig.from_dict({"engram_head_dim": head_dim, **values})

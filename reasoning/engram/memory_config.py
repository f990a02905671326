"""What a model's memory is made of, read from any `config.json` that has the `engram_*` keys."""

from __future__ import annotations

from pathlib import Path

from reasoning.config.engram import EngramConfig
from reasoning.config.json_file import read_config

MEMORY_DIR = "memory"
"""Folder of a model directory that holds its tables."""


def read_memory_config(model_dir: str | Path, head_dim: int | None = None) -> EngramConfig:
    """Return the Engram layers of `model_dir`, whose backbone may be one that this project cannot run.

    Args:
        model_dir: holds the `config.json`.
        head_dim: stands in where the file has no engram_head_dim.

    Raises:
        ValueError: there is no such file, it is not JSON, or it describes no memory.
    """
    raw = read_config(model_dir, remedy="copy it from the checkpoint, or name a preset")
    raw = raw.get("text_config", raw) if isinstance(raw, dict) else raw  # where a model also sees images
    if isinstance(raw, dict) and raw.get("engram_head_dim") is None:
        raw = raw | {"engram_head_dim": head_dim}
    config = EngramConfig.from_dict(raw) if isinstance(raw, dict) else None
    if config is None:
        raise ValueError(
            f"{model_dir}/config.json has no engram_layer_ids, so no memory; give another model, or name a preset"
        )
    return config

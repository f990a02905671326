"""The architectures there are, by the `model_type` of config.json: the only place that knows them all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reasoning.architectures.base import Architecture, Backbone, ModelConfig
from reasoning.architectures.deepseek_v3.architecture import DeepseekV3
from reasoning.config.checks import require
from reasoning.config.json_file import read_config

ARCHITECTURES: dict[str, Architecture[Any]] = {
    "deepseek_v3": DeepseekV3(),
    "kimi_k2": DeepseekV3(),
}
_UNNAMED = "deepseek_v3"


def architecture_of(raw: Mapping[str, Any]) -> Architecture[Any]:
    """Return the architecture of a `config.json`; DeepSeek-V3 where it names none.

    Raises:
        ValueError: naming the model type and the ones that are known.
    """
    name = raw.get("model_type", _UNNAMED)
    known = ", ".join(map(repr, ARCHITECTURES))
    require(isinstance(name, str) and name in ARCHITECTURES, "model_type", name, f"one of {known}")
    return ARCHITECTURES[name]


def read_model_json(model_dir: str | Path) -> dict[str, Any]:
    """Return the object in `config.json` of a model directory.

    Raises:
        ValueError: the file is missing, not JSON, or no object.
    """
    raw = read_config(model_dir)
    require(isinstance(raw, dict), "config.json", type(raw).__name__, "a JSON object")
    return raw


def read_model_config(model_dir: str | Path) -> ModelConfig:
    """Read the configuration of a model directory.

    Raises:
        ValueError: the file is missing or damaged, its architecture unknown, or a field not supported.
    """
    raw = read_model_json(model_dir)
    return architecture_of(raw).read_config(raw)


def build_backbone(config: ModelConfig) -> Backbone:
    """Make a backbone of any configuration; its weights hold nothing yet."""
    return architecture_of(config.to_dict()).build(config)

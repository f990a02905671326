"""DeepSeek-V3 as an architecture among others."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Container, Iterator, Mapping
from typing import Any

from reasoning.architectures.base import Architecture
from reasoning.architectures.deepseek_v3.backbone import DeepseekV3Backbone
from reasoning.architectures.deepseek_v3.config import DeepseekV3Config
from reasoning.architectures.deepseek_v3.weights import is_ignored, prediction_prefix, weights
from reasoning.architectures.weights import Weight


class DeepseekV3(Architecture[DeepseekV3Config]):
    """Checkpoints of `model_type` deepseek_v3 and kimi_k2, with or without Engram layers."""

    def read_config(self, raw: Mapping[str, Any]) -> DeepseekV3Config:
        """Read a `config.json`."""
        return DeepseekV3Config.from_dict(raw)

    def build(self, config: DeepseekV3Config) -> DeepseekV3Backbone:
        """Make a backbone."""
        return DeepseekV3Backbone(config)

    def weights(self, config: DeepseekV3Config, stored: Container[str] = ()) -> Iterator[Weight]:
        """Yield the tensors of a checkpoint."""
        return weights(config, stored)

    def settle(self, config: DeepseekV3Config, stored: Collection[str]) -> DeepseekV3Config:
        """Do without multi-token prediction where it is counted but absent: so does transformers save a model."""
        prefix = prediction_prefix(config)
        if any(name.startswith(prefix) for name in stored):
            return config
        return dataclasses.replace(config, num_nextn_predict_layers=0)

    def ignores(self, config: DeepseekV3Config, name: str) -> bool:
        """Whether a tensor belongs to no part of the backbone."""
        return is_ignored(config, name)

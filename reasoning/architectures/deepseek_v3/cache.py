"""The cache of DeepSeek-V3: latents of every layer, and what short convolutions of Engram layers look back to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from reasoning.architectures.base import Cache
from reasoning.architectures.deepseek_v3.config import DeepseekV3Config
from reasoning.model.batch import PAGE_TOKENS


@dataclass
class LatentCache(Cache):
    """One latent a token and layer (arXiv 2405.04434, section 2.1), and the convolutions' inputs at every position."""

    latents: Tensor  # [cached_layers, pages, PAGE_TOKENS, latent_size]
    conv: dict[int, Tensor] = field(default_factory=dict)  # layer -> [pages, PAGE_TOKENS, hidden]

    @classmethod
    def empty(
        cls,
        config: DeepseekV3Config,
        pages: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> LatentCache:
        """Allocate `pages` pages."""
        page = (pages, PAGE_TOKENS)
        latents = torch.zeros(config.cached_layers, *page, config.latent_size, device=device, dtype=dtype)
        engram = config.engram
        layers = engram.layer_ids if engram is not None and engram.conv_history else ()
        return cls(latents, {i: torch.zeros(*page, config.hidden_size, device=device, dtype=dtype) for i in layers})

    @property
    def pages(self) -> int:
        """Number of pages."""
        return self.latents.shape[1]

    @property
    def tensors(self) -> Sequence[Tensor]:
        """Latents, then the convolutions' inputs."""
        return self.latents, *self.conv.values()

"""What one forward pass works on: chunks of several sequences laid end to end, and what is cached of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from reasoning.config import ModelConfig


@dataclass(frozen=True)
class Batch:
    """The next tokens of B sequences, T tokens in all, without padding.

    Sequence i brings `lengths[i]` tokens that follow `starts[i]` tokens already seen; `slots[i]` is its place in
    the cache. `kept` marks the positions whose hidden state the memory may change (None: all of them).
    """

    token_ids: Tensor  # [T] int64
    lengths: tuple[int, ...]
    starts: tuple[int, ...]
    slots: tuple[int, ...] = ()
    kept: Tensor | None = None  # [T] bool

    @property
    def positions(self) -> Tensor:
        """Position of each token in its sequence, [T] int64."""
        spans = [torch.arange(s, s + n) for s, n in zip(self.starts, self.lengths, strict=True)]
        return torch.cat(spans).to(self.token_ids.device)

    @property
    def offsets(self) -> list[int]:
        """Where each sequence begins among the T tokens, and T itself: B + 1 numbers."""
        ends = [0]
        for length in self.lengths:
            ends.append(ends[-1] + length)
        return ends

    @property
    def last_tokens(self) -> Tensor:
        """Index of each sequence's last token, [B] int64."""
        return torch.tensor(self.offsets[1:], device=self.token_ids.device) - 1

    @classmethod
    def of_whole_sequences(cls, token_ids: Tensor) -> Batch:
        """Make a batch of B equally long sequences from their beginning; `token_ids` is [B, S]."""
        count, length = token_ids.shape
        return cls(token_ids.reshape(-1), lengths=(length,) * count, starts=(0,) * count)


@dataclass
class Cache:
    """MLA latents of every layer and convolution history of every Engram layer, for a fixed number of sequences."""

    latents: Tensor  # [layers, slots, context, latent_size]
    conv: dict[int, Tensor] = field(default_factory=dict)  # layer -> [slots, conv_history, hidden]

    @classmethod
    def empty(cls, config: ModelConfig, slots: int, context: int, device: torch.device | str = "cpu") -> Cache:
        """Allocate a cache for `slots` sequences of at most `context` tokens in fp32."""
        shape = (config.num_hidden_layers, slots, context, config.latent_size)
        history = (slots, config.conv_history, config.hidden_size)
        layers = config.engram_layer_ids if config.conv_history else ()
        conv = {layer: torch.zeros(history, device=device) for layer in layers}
        return cls(torch.zeros(shape, device=device), conv)

    def reset(self, slot: int) -> None:
        """Forget the sequence of a slot. Latents need no clearing: only positions written are ever read."""
        for history in self.conv.values():
            history[slot] = 0

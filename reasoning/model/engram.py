"""The Engram layer: memory rows of each position, gated by the hidden state (arXiv 2601.07372, section 2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.engram_fuse import engram_gate
from reasoning.config import ModelConfig
from reasoning.model.batch import Batch


class Engram(nn.Module):
    """h + gate * value, with an optional short convolution, for `streams` hidden streams."""

    def __init__(self, config: ModelConfig, streams: int = 1):
        super().__init__()
        hidden = config.hidden_size
        self.streams, self.gate, self.eps = streams, config.engram_gate, config.rms_norm_eps
        self.wkv = nn.Linear(config.engram_width, (streams + 1) * hidden, bias=False)
        self.q_weight = nn.Parameter(torch.ones(streams, hidden))
        self.k_weight = nn.Parameter(torch.ones(streams, hidden))
        self.conv = ShortConvolution(config, streams) if config.engram_conv_kernel else None

    def forward(self, h: Tensor, rows: Tensor, batch: Batch, history: Tensor | None = None) -> Tensor:
        """Add what the memory knows.

        Args:
            h: hidden streams, [T, G, hidden].
            rows: the C rows of each position end to end, [T, C * D].
            batch: how the T tokens divide into sequences, and which positions are kept out.
            history: what the convolution has seen, [pages, PAGE_TOKENS, G * hidden], read and extended; None when
                every sequence starts here.

        Returns:
            [T, G, hidden]
        """
        keys, value = self.wkv(rows).unflatten(-1, (self.streams + 1, -1)).split((self.streams, 1), dim=1)
        y = engram_gate(h, keys, value[:, 0], self.q_weight, self.k_weight, self.gate, self.eps)
        if batch.kept is not None:
            y = y * batch.kept[:, None, None]
        if self.conv is not None:
            delta = y + self.conv(y, batch, history)
            y = delta if batch.kept is None else delta * batch.kept[:, None, None]
        return h + y


class ShortConvolution(nn.Module):
    """SiLU(conv(rms(y))): depthwise, causal, dilated by the largest n-gram order, initialised to zero."""

    def __init__(self, config: ModelConfig, streams: int):
        super().__init__()
        self.taps, self.dilation = config.engram_conv_kernel, config.engram_max_ngram_size
        self.eps = config.rms_norm_eps
        self.norm_weight = nn.Parameter(torch.ones(streams, config.hidden_size))
        self.weight = nn.Parameter(torch.zeros(streams * config.hidden_size, 1, self.taps))

    def forward(self, y: Tensor, batch: Batch, history: Tensor | None) -> Tensor:
        """[T, G, hidden] -> [T, G, hidden]; `history` as for `Engram.forward`."""
        x = (F.rms_norm(y, y.shape[-1:], eps=self.eps) * self.norm_weight).flatten(1)
        seen = x
        if history is not None:
            seen = history.view(-1, x.shape[1]).index_copy_(0, batch.places, x)
        weight = self.weight[:, 0]
        mixed = x * weight[:, -1]
        for lag in range(1, self.taps):
            index, absent = batch.earlier(lag * self.dilation)
            earlier = seen.index_select(0, index).masked_fill(absent[:, None], 0.0)
            mixed = mixed + earlier * weight[:, self.taps - 1 - lag]
        return F.silu(mixed).view_as(y)

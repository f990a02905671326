"""The Engram layer: memory rows of each position, gated by the hidden state (arXiv 2601.07372, section 2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kernels.engram_conv import engram_conv
from kernels.engram_fuse import engram_fuse, engram_gate
from kernels.rms_norm import rms_norm
from reasoning.config.engram import EngramConfig
from reasoning.model.batch import Batch


class Engram(nn.Module):
    """h + gate * value, with an optional short convolution, for `streams` hidden streams."""

    def __init__(self, config: EngramConfig, hidden: int, eps: float, streams: int = 1):
        """Make the layer for streams of `hidden` values each; `eps` is that of the model's norms."""
        super().__init__()
        self.streams, self.gate, self.eps = streams, config.gate, eps
        self.wkv = nn.Linear(config.width, (streams + 1) * hidden, bias=False)
        self.q_weight = nn.Parameter(torch.ones(streams, hidden))
        self.k_weight = nn.Parameter(torch.ones(streams, hidden))
        self.conv = ShortConvolution(config, hidden, eps, streams) if config.conv_kernel else None
        self.gate_mean: Tensor | None = None  # in training, see Backbone.gate_means

    def forward(self, h: Tensor, rows: Tensor, batch: Batch, history: Tensor | None = None) -> Tensor:
        """Add the gated memory rows to the hidden streams.

        Args:
            h: hidden streams, [T, G, hidden].
            rows: the C rows of each position end to end, [T, C * D].
            batch: how the T tokens divide into sequences, and which positions the memory must not change.
            history: the convolution's inputs so far, [pages, PAGE_TOKENS, G * hidden], read and extended; None when
                every sequence starts here.

        Returns:
            [T, G, hidden].
        """
        keys, value = self.wkv(rows).unflatten(-1, (self.streams + 1, -1)).split((self.streams, 1), dim=1)
        gated = (h, keys, value[:, 0], self.q_weight, self.k_weight, self.gate, self.eps, batch.kept)
        if self.conv is None:
            out = engram_fuse(*gated)
            self._watch(out - h, value)
            return out
        y = engram_gate(*gated)
        self._watch(y, value)
        return self.conv(h, y, batch, history)

    @torch.no_grad()
    def _watch(self, y: Tensor, value: Tensor) -> None:
        if self.training:
            self.gate_mean = y.float().norm() / (value.float().norm() * self.streams**0.5).clamp_min(1e-20)


class ShortConvolution(nn.Module):
    """SiLU(conv(rms(y))): depthwise, causal, dilated by the largest n-gram order, initialised to zero."""

    def __init__(self, config: EngramConfig, hidden: int, eps: float, streams: int):
        super().__init__()
        taps, dilation = config.conv_kernel, config.max_ngram_size
        self.distances = [dilation * lag for lag in reversed(range(taps))]
        self.eps = eps
        self.norm_weight = nn.Parameter(torch.ones(streams, hidden))
        self.weight = nn.Parameter(torch.zeros(streams * hidden, 1, taps))

    def forward(self, h: Tensor, y: Tensor, batch: Batch, history: Tensor | None) -> Tensor:
        """Return h + y + SiLU(conv(rms(y))), all [T, G, hidden]; `history` is that of `Engram.forward`."""
        seen = rms_norm(y, self.norm_weight, self.eps).flatten(1)
        if history is not None:
            seen = history.view(-1, seen.shape[1]).index_copy_(0, batch.places, seen)
        return engram_conv(h, y, seen, batch.earlier(self.distances), self.weight[:, 0], batch.kept)

"""A second architecture, unlike DeepSeek-V3 wherever the seam allows it: it exists to show that the seam holds.

Two hidden streams; attention over a window of keys and over pooled entries, one for each four positions, so that a page
keeps two kinds of state of unequal sizes besides the convolution's; experts chosen by token id, at every layer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reasoning.architectures.base import Architecture, Backbone, Cache, RowSource
from reasoning.architectures.weights import Place, Weight
from reasoning.config.engram import EngramConfig
from reasoning.model.batch import PAGE_TOKENS, Batch
from reasoning.model.engram import Engram

STREAMS, WINDOW, POOL, EXPERTS, EPS = 2, 8, 4, 3, 1e-6


@dataclass(frozen=True)
class ToyConfig:
    """Meets the protocol `ModelConfig`."""

    vocab_size: int = 257
    width: int = 16
    num_hidden_layers: int = 2
    max_position_embeddings: int = 320
    initializer_range: float = 0.4
    bos_token_id: int | None = None
    eos_token_id: tuple[int, ...] = (256,)
    engram: EngramConfig | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return what `Toy.read_config` reads."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "engram"}
        return {"model_type": "toy", **own, **(self.engram.to_dict() if self.engram else {})}


@dataclass
class ToyCache(Cache):
    """Keys of every position, an entry for each POOL of them, and the convolutions' inputs."""

    keys: Tensor  # [layers, pages, PAGE_TOKENS, width]
    entries: Tensor  # [layers, pages, PAGE_TOKENS / POOL, width]
    conv: dict[int, Tensor] = field(default_factory=dict)

    @property
    def pages(self) -> int:
        """Number of pages."""
        return self.keys.shape[1]

    @property
    def tensors(self) -> list[Tensor]:
        """All that is kept."""
        return [self.keys, self.entries, *self.conv.values()]


class ToyLayer(nn.Module):
    """Memory on all streams, attention, and an expert for each token id."""

    def __init__(self, config: ToyConfig, layer: int):
        super().__init__()
        self.layer, width, memory = layer, config.width, config.engram
        has_memory = memory is not None and layer in memory.layer_ids
        self.engram = Engram(memory, width, EPS, STREAMS) if has_memory else None
        self.key = nn.Linear(width, width, bias=False)
        self.query = nn.Linear(width, width, bias=False)
        self.experts = nn.Parameter(torch.empty(EXPERTS, width, width))
        self.back = nn.Parameter(torch.ones(STREAMS))

    def forward(self, x: Tensor, batch: Batch, rows: RowSource | None, cache: ToyCache | None) -> Tensor:
        if self.engram is not None and rows is not None:
            x = self.engram(x, rows(self.layer), batch, None if cache is None else cache.conv.get(self.layer))
        collapsed = F.rms_norm(x.sum(1), x.shape[-1:], eps=EPS)
        attended = collapsed + self.attend(collapsed, batch, cache)
        chosen = self.experts[batch.token_ids % EXPERTS]
        return x + self.back[:, None] * F.silu(torch.einsum("toi,ti->to", chosen, attended))[:, None]

    def attend(self, x: Tensor, batch: Batch, cache: ToyCache | None) -> Tensor:
        queries, keys, out = self.query(x), self.key(x), []
        for i, (start, length) in enumerate(zip(batch.starts, batch.lengths, strict=True)):
            own = slice(batch.offsets[i], batch.offsets[i] + length)
            seen, entries = self.context(keys[own], start, batch.pages[i] if cache is not None else None, cache)
            at = torch.arange(start, start + length)[:, None]
            key, entry = torch.arange(start + length), torch.arange(len(entries))
            visible = torch.cat(((key <= at) & (key > at - WINDOW), entry < (at + 1) // POOL), dim=1)
            both = torch.cat((seen, entries))
            scores = (queries[own] @ both.T).masked_fill(~visible, float("-inf"))
            out.append(scores.softmax(-1) @ both)
        return torch.cat(out)

    def context(
        self, own: Tensor, start: int, pages: tuple[int, ...] | None, cache: ToyCache | None
    ) -> tuple[Tensor, Tensor]:
        """Return the keys of a sequence, its own included, and the entries of its complete pools."""
        end = start + len(own)
        if cache is None or pages is None:
            return own, own[: end // POOL * POOL].unflatten(0, (-1, POOL)).mean(1)
        position = torch.arange(end)
        places = torch.tensor(pages)[position // PAGE_TOKENS] * PAGE_TOKENS + position % PAGE_TOKENS
        keys, entries = cache.keys[self.layer].flatten(0, 1), cache.entries[self.layer].flatten(0, 1)
        keys[places[start:]] = own
        pools = places[POOL - 1 :: POOL] // POOL
        fresh = slice(start // POOL, end // POOL)
        entries[pools[fresh]] = keys[places[: end // POOL * POOL]].unflatten(0, (-1, POOL))[fresh].mean(1)
        return keys[places], entries[pools]


class ToyBackbone(Backbone):
    """Hands on both streams; only `logits` and `predict_ahead` know what they are."""

    config: ToyConfig

    def __init__(self, config: ToyConfig):
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(ToyLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.mix = nn.Parameter(torch.ones(STREAMS))
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)

    def forward(self, batch: Batch, rows: RowSource | None = None, cache: ToyCache | None = None) -> Tensor:
        x = self.embed(batch.token_ids)[:, None].expand(-1, STREAMS, -1)
        for layer in self.layers:
            x = layer(x, batch, rows, cache)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        return self.head(F.rms_norm(torch.einsum("tgd,g->td", hidden, self.mix), hidden.shape[-1:], eps=EPS))

    @property
    def has_mtp(self) -> bool:
        return True

    def predict_ahead(self, hidden: Tensor, batch: Batch, cache: ToyCache | None) -> Tensor:
        return hidden + self.embed(batch.token_ids)[:, None]

    def new_cache(self, pages: int) -> ToyCache:
        config, nan = self.config, float("nan")  # reading what was not written gives NaN
        keys = torch.full((config.num_hidden_layers, pages, PAGE_TOKENS, config.width), nan, dtype=self.dtype)
        memory = config.engram
        layers = memory.layer_ids if memory is not None and memory.conv_history else ()
        conv = {i: torch.full((pages, PAGE_TOKENS, STREAMS * config.width), nan, dtype=self.dtype) for i in layers}
        return ToyCache(keys, keys[:, :, ::POOL].clone(), conv)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> ToyBackbone:
        for parameter in self.parameters():
            parameter.normal_(0, self.config.initializer_range, generator=generator)
        return self


class Toy(Architecture[ToyConfig]):
    """Its tensors have the parameters' names, after a prefix."""

    def read_config(self, raw: Mapping[str, Any]) -> ToyConfig:
        own = {f.name: raw[f.name] for f in dataclasses.fields(ToyConfig) if f.name in raw}
        return ToyConfig(**{**own, "eos_token_id": tuple(raw["eos_token_id"])}, engram=EngramConfig.from_dict(raw))

    def build(self, config: ToyConfig) -> ToyBackbone:
        return ToyBackbone(config)

    def weights(self, config: ToyConfig, stored: Container[str] = ()) -> Iterator[Weight]:
        width, memory = config.width, config.engram
        shapes = {"embed.weight": (config.vocab_size, width), "mix": (STREAMS,)}
        shapes["head.weight"] = (config.vocab_size, width)
        for layer in range(config.num_hidden_layers):
            own = {"key.weight": (width, width), "query.weight": (width, width)}
            own |= {"experts": (EXPERTS, width, width), "back": (STREAMS,)}
            if memory is not None and layer in memory.layer_ids:
                own |= {"engram.wkv.weight": ((STREAMS + 1) * width, memory.width)}
                own |= {f"engram.{name}": (STREAMS, width) for name in ("q_weight", "k_weight", "conv.norm_weight")}
                own |= {"engram.conv.weight": (STREAMS * width, 1, memory.conv_kernel)}
            shapes |= {f"layers.{layer}.{name}": shape for name, shape in own.items()}
        yield from (Weight(f"toy.{name}", shape, (Place(name),)) for name, shape in shapes.items())

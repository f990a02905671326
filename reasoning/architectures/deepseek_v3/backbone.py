"""The backbone of DeepSeek-V3 (arXiv 2412.19437), some of its layers with an Engram memory in front."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kernels.dispatch import use_triton
from reasoning.architectures.base import Backbone, RowSource
from reasoning.architectures.deepseek_v3.cache import LatentCache
from reasoning.architectures.deepseek_v3.config import DeepseekV3Config
from reasoning.architectures.deepseek_v3.decoder_layer import DecoderLayer
from reasoning.architectures.deepseek_v3.moe import MixtureOfExperts, Router
from reasoning.architectures.deepseek_v3.mtp import MultiTokenPrediction
from reasoning.model.batch import Batch
from reasoning.model.norm import RMSNorm
from reasoning.model.rope import Rotations


class DeepseekV3Backbone(Backbone):
    """Embedding, decoder layers, final norm, head, and the layer of multi-token prediction. Hidden states: [T, d]."""

    config: DeepseekV3Config

    def __init__(self, config: DeepseekV3Config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.mtp = MultiTokenPrediction(config) if config.num_nextn_predict_layers else None
        self.rotations = Rotations(config.rope, config.qk_rope_head_dim)
        self.tie_weights()

    def forward(self, batch: Batch, rows: RowSource | None = None, cache: LatentCache | None = None) -> Tensor:
        """Return final normalised hidden states, [T, hidden]."""
        cos, sin = self.rotations(batch.positions)
        h = self.embed_tokens(batch.token_ids)
        for layer in self.layers:
            if self.checkpoint_activations and self.training:
                h = checkpoint(layer, h, cos, sin, batch, rows, cache, use_reentrant=False)
            else:
                h = layer(h, cos, sin, batch, rows, cache)
        return self.norm(h)

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, hidden] -> [n, vocabulary]."""
        return self.lm_head(hidden)

    @property
    def has_mtp(self) -> bool:
        """Whether the checkpoint came with its layer of multi-token prediction."""
        return self.mtp is not None

    def predict_ahead(self, hidden: Tensor, batch: Batch, cache: LatentCache | None) -> Tensor:
        """[T, hidden] -> [T, hidden], normalised."""
        assert self.mtp is not None, "has_mtp says whether there is one"
        cos, sin = self.rotations(batch.positions)
        return self.mtp(self.embed_tokens(batch.token_ids), hidden, cos, sin, batch, cache)

    def new_cache(self, pages: int) -> LatentCache:
        """Allocate latents and the convolutions' inputs."""
        return LatentCache.empty(self.config, pages, self.device, self.dtype)

    @property
    def decodes_by_graphs(self) -> bool:
        """On a GPU, where attention has a kernel that finds contexts and pages on the device."""
        weight = self.embed_tokens.weight
        return weight.is_cuda and use_triton(weight)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> DeepseekV3Backbone:
        """Draw every matrix from N(0, initializer_range); norms stay one and convolutions zero."""
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1 and "conv" not in name and not name.endswith(("q_weight", "k_weight")):
                parameter.normal_(0.0, self.config.initializer_range, generator=generator)
        return self

    def tie_weights(self) -> None:
        """Let the head use the embedding's matrix where the configuration says so."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    def precise_modules(self) -> Iterator[nn.Module]:
        """Routers: their scores are compared with each other."""
        return (module for module in self.modules() if isinstance(module, Router))

    def expert_loads(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each router's correction bias and the tokens that its experts got."""
        for module in self.modules():
            if isinstance(module, MixtureOfExperts) and module.load is not None:
                yield module.gate.e_score_correction_bias, module.load

    def sequence_balance(self, batch: Batch) -> Tensor:
        """Sum of the layers' losses; see MixtureOfExperts."""
        mixtures = [module for module in self.modules() if isinstance(module, MixtureOfExperts)]
        losses = [m.sequence_balance(len(batch.lengths)) for m in mixtures if m.gate.logits is not None]
        return torch.stack(losses).sum() if losses else super().sequence_balance(batch)

    def gate_means(self) -> Iterator[tuple[int, Tensor]]:
        """Yield the Engram layers' shares."""
        for layer in self.layers:
            assert isinstance(layer, DecoderLayer), "there are no others"
            if layer.engram is not None and layer.engram.gate_mean is not None:
                yield layer.layer, layer.engram.gate_mean

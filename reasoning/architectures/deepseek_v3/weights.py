"""Tensor names of DeepSeek-V3 checkpoints, in both spellings that Hugging Face's transformers writes.

Most tensors are a parameter each, whose name has `model.` in front. Others are laid out differently here: all experts
of a layer are one stacked tensor, and what expands latents to keys and values is a tensor of each. Checkpoints have the
layer of multi-token prediction as one more layer of the model.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator

from reasoning.architectures.deepseek_v3.config import DeepseekV3Config
from reasoning.architectures.weights import Place, Shape, Weight
from reasoning.config.engram import EngramConfig

_EMBEDDING, _HEAD = "embed_tokens.weight", "lm_head.weight"
_NOT_LOADED = (".engram.embed.", ".rotary_emb.inv_freq")
"""Parts of names: memory tables, which shards hold, and a table that some releases saved."""


def weights(config: DeepseekV3Config, stored: Container[str]) -> Iterator[Weight]:
    """Yield the tensors of a checkpoint that has the names `stored`; see `Architecture.weights`."""
    hidden = config.hidden_size
    yield _same(_EMBEDDING, (config.vocab_size, hidden))
    for layer in range(config.num_hidden_layers):
        yield from _Layer(config, layer, f"layers.{layer}.", stored).weights()
    yield _same("norm.weight", (hidden,))
    if not config.tie_word_embeddings:
        yield Weight(_HEAD, (config.vocab_size, hidden), (Place(_HEAD),))
    if config.num_nextn_predict_layers:
        yield from _prediction(config, stored)


def is_ignored(config: DeepseekV3Config, name: str) -> bool:
    """Whether a checkpoint's tensor belongs to none of the parts above."""
    layer = re.match(r"model\.layers\.(\d{1,18})\.", name)
    beyond = layer is not None and int(layer[1]) >= config.cached_layers
    tied = config.tie_word_embeddings and name == _HEAD
    return beyond or tied or any(part in name for part in _NOT_LOADED)


def prediction_prefix(config: DeepseekV3Config) -> str:
    """Return what names of the layer of multi-token prediction begin with."""
    return f"model.layers.{config.num_hidden_layers}."


def _prediction(config: DeepseekV3Config, stored: Container[str]) -> Iterator[Weight]:
    hidden, prefix = config.hidden_size, prediction_prefix(config)
    own: dict[str, Shape] = {
        "enorm.weight": (hidden,),
        "hnorm.weight": (hidden,),
        "eh_proj.weight": (hidden, 2 * hidden),
        "shared_head.norm.weight": (hidden,),
    }
    for name, shape in own.items():
        yield Weight(prefix + name, shape, (Place(f"mtp.{name}"),))
    yield from _Layer(config, config.num_hidden_layers, "mtp.layer.", stored).weights()
    # Checkpoints repeat what the layer shares with the backbone.
    head = _EMBEDDING if config.tie_word_embeddings else _HEAD
    for name, shared in (("embed_tokens.weight", _EMBEDDING), ("shared_head.head.weight", head)):
        yield Weight(prefix + name, (config.vocab_size, hidden), (Place(shared),), copy=True)


def _same(name: str, shape: Shape) -> Weight:
    """A parameter of the same layout."""
    return Weight(f"model.{name}", shape, (Place(name),))


class _Layer:
    """One decoder layer, called `model.layers.N.` in checkpoints and `place` in the backbone."""

    def __init__(self, config: DeepseekV3Config, layer: int, place: str, stored: Container[str]):
        self.config, self.layer, self.stored = config, layer, stored
        self.name, self.place = f"model.layers.{layer}.", place

    def weights(self) -> Iterator[Weight]:
        config = self.config
        if config.engram is not None and self.layer in config.engram.layer_ids:
            yield from self._engram(config.engram)
        yield self._one("input_layernorm.weight", config.hidden_size)
        yield from self._attention()
        yield self._one("post_attention_layernorm.weight", config.hidden_size)
        if self.layer < config.first_k_dense_replace:
            yield from self._swiglu("mlp.", config.intermediate_size)
        else:
            yield from self._mixture()

    def _one(self, name: str, *shape: int) -> Weight:
        """A parameter of the same name and layout."""
        return Weight(self.name + name, shape, (Place(self.place + name),))

    def _engram(self, engram: EngramConfig) -> Iterator[Weight]:
        hidden = self.config.hidden_size
        yield self._one("engram.wkv.weight", 2 * hidden, engram.width)
        yield self._one("engram.q_weight", 1, hidden)
        yield self._one("engram.k_weight", 1, hidden)
        if engram.conv_kernel:
            yield self._one("engram.conv.norm_weight", 1, hidden)
            yield self._one("engram.conv.weight", hidden, 1, engram.conv_kernel)

    def _attention(self) -> Iterator[Weight]:
        config = self.config
        hidden, heads, rank = config.hidden_size, config.num_attention_heads, config.kv_lora_rank
        nope, rope, value = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
        if config.q_lora_rank is None:
            yield self._one("self_attn.q_proj.weight", heads * (nope + rope), hidden)
        else:
            yield self._one("self_attn.q_a_proj.weight", config.q_lora_rank, hidden)
            yield self._one("self_attn.q_a_layernorm.weight", config.q_lora_rank)
            yield self._one("self_attn.q_b_proj.weight", heads * (nope + rope), config.q_lora_rank)
        yield self._one("self_attn.kv_a_proj_with_mqa.weight", rank + rope, hidden)
        yield self._one("self_attn.kv_a_layernorm.weight", rank)
        expansions = [Place(f"{self.place}self_attn.{kind}_expansion") for kind in ("key", "value")]
        name = f"{self.name}self_attn.kv_b_proj.weight"
        yield Weight(name, (heads * (nope + value), rank), tuple(expansions), turns=heads)
        yield self._one("self_attn.o_proj.weight", hidden, heads * value)

    def _swiglu(self, name: str, width: int) -> Iterator[Weight]:
        hidden = self.config.hidden_size
        yield self._one(f"{name}gate_proj.weight", width, hidden)
        yield self._one(f"{name}up_proj.weight", width, hidden)
        yield self._one(f"{name}down_proj.weight", hidden, width)

    def _mixture(self) -> Iterator[Weight]:
        config = self.config
        experts = config.n_routed_experts
        yield self._one("mlp.gate.weight", experts, config.hidden_size)
        bias = "mlp.gate.e_score_correction_bias"  # in fp32, as biases are compared with each other, not multiplied
        yield Weight(self.name + bias, (experts,), (Place(self.place + bias),), fp32=True)
        if config.n_shared_experts:
            yield from self._swiglu("mlp.shared_experts.", config.moe_intermediate_size * config.n_shared_experts)
        fused = f"{self.name}mlp.experts.gate_up_proj"
        yield from self._stacked_experts(fused) if fused in self.stored else self._single_experts()

    def _stacked_experts(self, gate_up: str) -> Iterator[Weight]:
        """Yield both tensors of all experts, as transformers keeps them."""
        config = self.config
        hidden, width, experts = config.hidden_size, config.moe_intermediate_size, config.n_routed_experts
        yield Weight(gate_up, (experts, 2 * width, hidden), (Place(f"{self.place}mlp.gate_up"),))
        down = f"{self.name}mlp.experts.down_proj"
        yield Weight(down, (experts, hidden, width), (Place(f"{self.place}mlp.down"),))

    def _single_experts(self) -> Iterator[Weight]:
        """Yield three tensors of each expert, as DeepSeek releases them."""
        hidden, width = self.config.hidden_size, self.config.moe_intermediate_size
        gate_up, down = f"{self.place}mlp.gate_up", f"{self.place}mlp.down"
        gate, up = slice(width), slice(width, None)
        for expert in range(self.config.n_routed_experts):
            name = f"{self.name}mlp.experts.{expert}."
            yield Weight(f"{name}gate_proj.weight", (width, hidden), (Place(gate_up, (expert, gate)),))
            yield Weight(f"{name}up_proj.weight", (width, hidden), (Place(gate_up, (expert, up)),))
            yield Weight(f"{name}down_proj.weight", (hidden, width), (Place(down, (expert,)),))

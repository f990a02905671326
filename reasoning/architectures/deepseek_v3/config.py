"""Model configuration: the Hugging Face `deepseek_v3` keys plus the `engram_*` keys of DeepSeek-V4.1."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from reasoning.config.checks import check_types, is_whole, require
from reasoning.config.engram import EngramConfig, check_keys
from reasoning.config.rope import LARGEST_CONTEXT, RopeConfig
from reasoning.config.token_ids import read_token_ids

# Keys whose other values would mean an architecture that this model does not implement.
_ONLY_VALUE: dict[str, tuple[Any, ...]] = {
    "model_type": ("deepseek_v3", "kimi_k2"),  # the same architecture
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "scoring_func": ("sigmoid",),
    "topk_method": ("noaux_tc",),
    "moe_layer_freq": (1,),
    "rope_interleave": (True,),
    "hc_mult": (1,),
}
_ZERO_ALLOWED = {
    "first_k_dense_replace",
    "num_nextn_predict_layers",
    "n_shared_experts",
    "n_routed_experts",
    "num_experts_per_tok",
    "n_group",
    "topk_group",
    "bos_token_id",
    "eos_token_id",
}


@dataclass(frozen=True)
class DeepseekV3Config:
    """A DeepSeek-V3 backbone with Engram layers. Field names are those of `config.json`."""

    vocab_size: int = 129280
    hidden_size: int = 7168
    intermediate_size: int = 18432
    """Width of the dense feed-forward of the first `first_k_dense_replace` layers."""
    moe_intermediate_size: int = 2048
    """Width of one expert."""
    num_hidden_layers: int = 61
    num_nextn_predict_layers: int = 0
    """1 for a multi-token prediction layer behind the backbone, which drafts tokens; 0 for none. A `config.json` may
    count more: the first layer then drafts all tokens, and the others are not loaded."""
    num_attention_heads: int = 128
    n_shared_experts: int = 1
    n_routed_experts: int = 256
    num_experts_per_tok: int = 8
    n_group: int = 8
    topk_group: int = 4
    routed_scaling_factor: float = 2.5
    norm_topk_prob: bool = True
    first_k_dense_replace: int = 3
    q_lora_rank: int | None = 1536
    """None projects queries directly."""
    kv_lora_rank: int = 512
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    max_position_embeddings: int = 4096
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_id: tuple[int, ...] = ()
    """Token ids that end a completion."""
    rope: RopeConfig = field(default_factory=RopeConfig)
    engram: EngramConfig | None = None
    """Layers with a memory; None for a plain backbone."""

    def __post_init__(self) -> None:
        check_types(self, zero_allowed=_ZERO_ALLOWED)
        positions = self.max_position_embeddings
        require(positions <= LARGEST_CONTEXT, "max_position_embeddings", positions, f"at most {LARGEST_CONTEXT:,}")
        require(self.qk_rope_head_dim % 2 == 0, "qk_rope_head_dim", self.qk_rope_head_dim, "an even number")
        ahead = self.num_nextn_predict_layers
        require(ahead <= 1, "num_nextn_predict_layers", ahead, "0 or 1: more are not implemented")
        if self.cached_layers > self.first_k_dense_replace:
            self._check_experts()
        if self.engram is not None:
            self.engram.check_backbone(self.vocab_size, self.num_hidden_layers)

    def _check_experts(self) -> None:
        groups, experts = self.n_group, self.n_routed_experts
        for name in ("hidden_size", "moe_intermediate_size"):  # the grouped product's rows are a multiple of 16 bytes
            require(getattr(self, name) % 8 == 0, name, getattr(self, name), "a multiple of 8, with routed experts")
        dense = f"first_k_dense_replace={self.cached_layers}"
        require(experts > 0, "n_routed_experts", experts, f"1 or more, or {dense}")
        require(groups > 0 and experts % groups == 0, "n_group", groups, f"a divisor of n_routed_experts={experts}")
        require(0 < self.topk_group <= groups, "topk_group", self.topk_group, f"1 to n_group={groups}")
        reachable = self.topk_group * (experts // groups)
        top = self.num_experts_per_tok
        require(0 < top <= reachable, "num_experts_per_tok", top, f"1 to {reachable}, the experts of topk_group groups")

    @property
    def cached_layers(self) -> int:
        """Layers with attention: those of the backbone, and one for multi-token prediction."""
        return self.num_hidden_layers + self.num_nextn_predict_layers

    @property
    def latent_size(self) -> int:
        """Values that the cache keeps for one position and layer."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> DeepseekV3Config:
        """Read a `config.json`. Foreign keys are ignored unless they change what the model computes.

        Raises:
            ValueError: naming the field, its value and what is accepted.
        """
        for name, accepted in _ONLY_VALUE.items():
            require(
                raw.get(name, accepted[0]) in accepted,
                name,
                raw.get(name),
                f"{accepted[0]!r}: nothing else is implemented",
            )
        check_keys(raw)
        values = {name: raw[name] for name in _flat_names() if raw.get(name) is not None}
        if "q_lora_rank" in raw:
            values["q_lora_rank"] = raw["q_lora_rank"]
        if is_whole(values.get("num_nextn_predict_layers")):
            values["num_nextn_predict_layers"] = min(values["num_nextn_predict_layers"], 1)
        values["eos_token_id"] = read_token_ids(raw, "eos_token_id", raw.get("vocab_size", cls.vocab_size))
        return cls(**values, rope=RopeConfig.from_dict(raw), engram=EngramConfig.from_dict(raw))

    def to_dict(self) -> dict[str, Any]:
        """Return the content of a `config.json` that `transformers`, vLLM and this project read alike."""
        values = {name: getattr(self, name) for name in _flat_names()}
        engram = {} if self.engram is None else self.engram.to_dict()
        fixed = {name: accepted[0] for name, accepted in _ONLY_VALUE.items() if name != "hc_mult"}
        head = {"architectures": ["DeepseekV3ForCausalLM"], "num_key_value_heads": self.num_attention_heads}
        return head | fixed | values | self.rope.to_dict() | engram


def _flat_names() -> list[str]:
    """Fields that are a key of config.json each."""
    return [field.name for field in dataclasses.fields(DeepseekV3Config) if field.name not in ("rope", "engram")]

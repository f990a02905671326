"""Model configuration: the Hugging Face `deepseek_v3` keys plus the `engram_*` keys of DeepSeek-V4.1."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memory_service.tables.rows import FP8_GROUP, RowFormat
from reasoning.config.checks import check_types, is_whole, require
from reasoning.config.json_file import read_config
from reasoning.config.rope import RopeConfig

GATES = ("sqrt", "sigmoid")
ROW_FORMATS = tuple(sorted(row_format.value for row_format in RowFormat))

# Keys whose other values would mean an architecture that this model does not implement.
_ONLY_VALUE: dict[str, tuple[Any, ...]] = {
    "model_type": ("deepseek_v3",),
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "scoring_func": ("sigmoid",),
    "topk_method": ("noaux_tc",),
    "moe_layer_freq": (1,),
    "rope_interleave": (True,),
    "hc_mult": (1,),
}


@dataclass(frozen=True)
class ModelConfig:
    """A DeepSeek-V3 backbone with Engram layers. Field names are those of `config.json`."""

    vocab_size: int = 129280
    hidden_size: int = 7168
    intermediate_size: int = 18432
    """Width of the dense feed-forward of the first `first_k_dense_replace` layers."""
    moe_intermediate_size: int = 2048
    """Width of one expert."""
    num_hidden_layers: int = 61
    num_nextn_predict_layers: int = 0
    """1 for a multi-token prediction layer behind the backbone, which drafts tokens; 0 for none."""
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

    engram_layer_ids: tuple[int, ...] = ()
    """Layers with a memory, counted from 0; empty for a plain backbone."""
    engram_max_ngram_size: int = 3
    engram_n_heads: int = 8
    """Hash heads of each n-gram order."""
    engram_head_dim: int = 64
    """Values of one row, that is of one column's vector."""
    engram_vocab_size: tuple[int, ...] = ()
    """Rows aimed at for each column, one number for each order 2..N. A plain integer stands for all orders."""
    engram_pad_token_id: int = 0
    """Token id (not compressed) that blocked positions read as."""
    engram_compressed_vocab_size: int = 0
    """Size of the token map the model was trained with; 0 takes that of its tokenizer."""
    engram_gate: str = "sqrt"
    """"sqrt" is the released gate (demo and V4.1), "sigmoid" the paper's equation 4."""
    engram_conv_kernel: int = 0
    """Taps of the short convolution, dilated by the largest n-gram order; 0 for none."""
    engram_row_format: str = "bf16"
    """How the tables store a row."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self.qk_rope_head_dim % 2 == 0, "qk_rope_head_dim", self.qk_rope_head_dim, "an even number")
        ahead = self.num_nextn_predict_layers
        require(ahead <= 1, "num_nextn_predict_layers", ahead, "0 or 1: more are not implemented")
        if self.cached_layers > self.first_k_dense_replace:
            self._check_experts()
        if self.engram_layer_ids:
            self._check_engram()

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

    def _check_engram(self) -> None:
        orders = self.engram_max_ngram_size - 1
        require(orders >= 1, "engram_max_ngram_size", self.engram_max_ngram_size, "2 or more")
        sizes = self.engram_vocab_size
        require(len(sizes) == orders, "engram_vocab_size", sizes, f"one number for each of the {orders} n-gram orders")
        layers, last = self.engram_layer_ids, self.num_hidden_layers - 1
        in_order = list(layers) == sorted(set(layers)) and layers[-1] <= last
        require(in_order, "engram_layer_ids", layers, f"layers 0 to {last} in ascending order, once each")
        pad, dim = self.engram_pad_token_id, self.engram_head_dim
        require(pad < self.vocab_size, "engram_pad_token_id", pad, f"a token id below vocab_size={self.vocab_size}")
        require(self.engram_gate in GATES, "engram_gate", self.engram_gate, f"one of {GATES}")
        require(
            self.engram_row_format in ROW_FORMATS, "engram_row_format", self.engram_row_format, f"one of {ROW_FORMATS}"
        )
        fp8 = RowFormat.FP8_E4M3_UE8M0.value
        whole_groups = self.engram_row_format != fp8 or dim % FP8_GROUP == 0
        require(whole_groups, "engram_head_dim", dim, f"a multiple of {FP8_GROUP} for engram_row_format {fp8!r}")

    @property
    def engram_columns(self) -> int:
        """Columns of one table: (N-1) orders times K heads."""
        return (self.engram_max_ngram_size - 1) * self.engram_n_heads

    @property
    def engram_width(self) -> int:
        """Values that one position gets from one table."""
        return self.engram_columns * self.engram_head_dim

    @property
    def conv_history(self) -> int:
        """Earlier positions that the short convolution looks back to."""
        return max(0, self.engram_conv_kernel - 1) * self.engram_max_ngram_size

    @property
    def cached_layers(self) -> int:
        """Layers with attention: those of the backbone, and one for multi-token prediction."""
        return self.num_hidden_layers + self.num_nextn_predict_layers

    @property
    def latent_size(self) -> int:
        """Values that the cache keeps for one position and layer."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> ModelConfig:
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
        known = {f.name for f in dataclasses.fields(cls)} - {"rope"}
        ignored = {"engram_num_embeddings"}  # follows from the geometry
        for name in raw:
            unknown = name.startswith("engram_") and name not in known | ignored
            require(not unknown, name, raw[name], "a known engram_* key; check its spelling")
        values = {name: raw[name] for name in known if name in raw and raw[name] is not None}
        if "q_lora_rank" in raw:
            values["q_lora_rank"] = raw["q_lora_rank"]
        return cls(**_normalised(values), rope=RopeConfig.from_dict(raw))

    @classmethod
    def from_dir(cls, model_dir: str | Path) -> ModelConfig:
        """Read `config.json` of a model directory; ValueError when it is missing or not JSON."""
        raw = read_config(model_dir)
        require(isinstance(raw, dict), "config.json", type(raw).__name__, "a JSON object")
        return cls.from_dict(raw)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of a `config.json` that `transformers`, vLLM and this project read alike."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "rope"}
        if not self.engram_layer_ids:
            values = {name: value for name, value in values.items() if not name.startswith("engram_")}
        fixed = {name: accepted[0] for name, accepted in _ONLY_VALUE.items() if name != "hc_mult"}
        head = {"architectures": ["DeepseekV3ForCausalLM"], "num_key_value_heads": self.num_attention_heads}
        return head | fixed | values | self.rope.to_dict()


def _normalised(values: dict[str, Any]) -> dict[str, Any]:
    """Bring JSON's looser forms (lists, a single end token, one size for all orders) to the fields' types."""
    order = values.get("engram_max_ngram_size", ModelConfig.engram_max_ngram_size)
    repeat = {"eos_token_id": 1, "engram_vocab_size": order - 1 if is_whole(order) else 1}
    for name in ("eos_token_id", "engram_vocab_size", "engram_layer_ids"):
        value = values.get(name)
        if isinstance(value, list | tuple):
            values[name] = tuple(value)
        elif is_whole(value) and name in repeat:
            values[name] = (value,) * repeat[name]
    return values

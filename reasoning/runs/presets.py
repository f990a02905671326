"""Configurations of models that are trained from nothing, by name."""

from __future__ import annotations

from reasoning.architectures.deepseek_v3.config import DeepseekV3Config
from reasoning.config.engram import EngramConfig

TINY_CODE = DeepseekV3Config(
    vocab_size=8192,
    hidden_size=256,
    intermediate_size=704,
    moe_intermediate_size=96,
    num_hidden_layers=8,
    num_attention_heads=4,
    n_shared_experts=1,
    n_routed_experts=8,
    num_experts_per_tok=2,
    n_group=1,
    topk_group=1,
    routed_scaling_factor=1.0,
    first_k_dense_replace=1,
    q_lora_rank=None,
    kv_lora_rank=96,
    qk_nope_head_dim=48,
    qk_rope_head_dim=16,
    v_head_dim=64,
    max_position_embeddings=1024,
    tie_word_embeddings=True,
    bos_token_id=0,
    eos_token_id=(0,),
    engram=EngramConfig(
        layer_ids=(1, 4),
        max_ngram_size=3,
        n_heads=4,
        head_dim=32,
        vocab_size=(24000, 24000),
        pad_token_id=1,
        gate="sqrt",
        conv_kernel=4,
        row_format="fp8_e4m3_ue8m0",
    ),
)
"""The shipped model: 9 M backbone parameters and two tables of 192,000 rows."""

MODELS = {"tiny-code": TINY_CODE}
"""Configurations by the names of `engram train --preset`."""

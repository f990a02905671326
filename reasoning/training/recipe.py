"""Hyperparameters of training runs, and the shipped model's configuration."""

from __future__ import annotations

from dataclasses import dataclass

from reasoning.architectures.deepseek_v3.config import DeepseekV3Config
from reasoning.config.engram import EngramConfig


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of a training run. Schedules follow the fraction of the run that is done."""

    steps: int = 0
    """Number of steps after which the run ends; 0 to end it after `minutes`."""
    minutes: float = 0.0
    """Minutes after which the run ends; 0 to end it after `steps`."""
    window: int = 512
    """Number of tokens in a training sequence."""
    batch: int = 8
    """Number of sequences in a step."""
    learning_rate: float = 2e-3
    """Peak learning rate of the backbone, between a linear warm-up and a linear decay to zero."""
    warm_up: float = 0.02
    """Fraction of the run that warms up."""
    table_rate_factor: float = 5.0
    """Learning rate of the tables relative to the backbone's, as in the Engram paper."""
    weight_decay: float = 0.1
    """Weight decay of the backbone's matrices; tables, norms and convolutions have none."""
    clip_norm: float = 1.0
    """Largest gradient norm of the backbone."""
    balance_rate: float = 1e-3
    """Step by which the routers' correction bias moves towards even load (arXiv 2408.15664)."""
    seed: int = 0
    """Seed of the initial weights and of the order of the data."""
    export_minutes: float = 10.0
    """Minutes between exports of the unfinished model."""

    def __post_init__(self) -> None:
        if (self.steps > 0) == (self.minutes > 0) or min(self.steps, self.minutes) < 0:
            raise ValueError(f"steps={self.steps}, minutes={self.minutes}: give exactly one of the two, above zero")
        if self.window < 2 or self.batch < 1:
            raise ValueError(f"window={self.window}, batch={self.batch}: use at least 2 and 1")
        if not 0 < self.warm_up < 1:
            raise ValueError(f"warm_up={self.warm_up}: use a share of the run above 0 and below 1, such as 0.02")


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

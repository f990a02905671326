"""Rotary position embedding as config.json describes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reasoning.config.checks import check_types, is_number, is_whole, require

# Keys of a YaRN description whose other values would mean another embedding than RopeConfig's.
_ONLY_ROPE_VALUE: dict[str, tuple[Any, ...]] = {"attention_factor": (None,), "truncate": (True, None)}

_LARGEST_FACTOR = 1 << 20
LARGEST_CONTEXT = 1 << 24
"""Most positions of a model: angles are computed in fp32, which has no whole numbers between 2^24 and 2^24 + 2."""


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding, with YaRN (arXiv 2309.00071) when `factor` is above one."""

    theta: float = 10000.0
    """Base of the geometric series of wavelengths."""
    factor: float = 1.0
    """Factor by which the context is extended; 1 for the plain rotary embedding."""
    original_max_position_embeddings: int = 4096
    """Context length before extension."""
    beta_fast: float = 32.0
    """Dimensions with more rotations than this over the original context are not interpolated."""
    beta_slow: float = 1.0
    """Dimensions with fewer rotations than this are interpolated fully."""
    mscale: float = 0.0
    """Numerator of the cos/sin magnitude; 0 for the paper's default."""
    mscale_all_dim: float = 0.0
    """Denominator of the cos/sin magnitude, whose square is applied to the softmax scale; 0 for none."""

    def __post_init__(self) -> None:
        require(is_number(self.theta) and self.theta > 1, "rope_theta", self.theta, "a number above 1, such as 10000")
        check_types(self, "rope_scaling.")
        require(1 <= self.factor <= _LARGEST_FACTOR, "rope_scaling.factor", self.factor, f"1 to {_LARGEST_FACTOR}")
        for name in ("beta_fast", "beta_slow"):
            require(getattr(self, name) > 0, f"rope_scaling.{name}", getattr(self, name), "a number above 0")

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> RopeConfig:
        """Read `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before)."""
        rope: dict[str, Any] = {}
        for name in ("rope_scaling", "rope_parameters"):
            part = raw.get(name) or {}
            require(isinstance(part, dict), name, part, "an object")
            rope |= {key: value for key, value in part.items() if value is not None}
        theta = rope.get("rope_theta", raw.get("rope_theta", cls.theta))
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind == "default":
            return cls(theta=theta)
        require(kind == "yarn", "rope_scaling.type", kind, "'yarn', or no rope_scaling")
        for name, accepted in _ONLY_ROPE_VALUE.items():
            require(rope.get(name) in accepted, f"rope_scaling.{name}", rope.get(name), f"{accepted[0]!r}")
        names = ("factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "original_max_position_embeddings")
        values = {name: rope[name] for name in names if name in rope}
        longest = raw.get("max_position_embeddings", cls.original_max_position_embeddings)
        require(is_whole(longest, 1), "max_position_embeddings", longest, "a whole number of at least 1")
        made = cls(theta=theta, **{"original_max_position_embeddings": longest, **values})
        if "factor" in values:
            return made
        return dataclasses.replace(made, factor=longest / made.original_max_position_embeddings)

    def to_dict(self) -> dict[str, Any]:
        """Return the keys that `from_dict` reads, in the form that every version of transformers understands."""
        if self.factor <= 1.0:
            return {"rope_theta": self.theta, "rope_scaling": None}
        yarn = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "theta"}
        return {"rope_theta": self.theta, "rope_scaling": {"rope_type": "yarn", "type": "yarn", **yarn}}

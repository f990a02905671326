"""Engram layers as any architecture's config.json describes them: the `engram_*` keys of DeepSeek-V4.1."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memory_service.tables.rows import FP8_GROUP, RowFormat
from reasoning.config.checks import LARGEST_INTEGER, check_types, is_whole, require

GATES = ("sqrt", "sigmoid")
ROW_FORMATS = tuple(sorted(row_format.value for row_format in RowFormat))
PREFIX = "engram_"
"""What the keys of config.json have before the names of the fields."""
_LONGEST_NGRAM = 16
_MOST_COLUMNS = 1 << 16
_ZERO_ALLOWED = {"layer_ids", "pad_token_id", "compressed_vocab_size", "conv_kernel"}
_FOLLOWS = {"engram_num_embeddings"}
"""Keys without a field: they follow from the others."""


@dataclass(frozen=True)
class EngramConfig:
    """The Engram layers of a model, and the geometry of their tables."""

    layer_ids: tuple[int, ...]
    """Layers with a memory, counted from 0, in ascending order."""
    max_ngram_size: int = 3
    """The longest n-gram, N; orders 2 to N are hashed."""
    n_heads: int = 8
    """Hash heads of each n-gram order."""
    head_dim: int = 64
    """Values of one row, that is of one column's vector."""
    vocab_size: tuple[int, ...] = ()
    """Target number of rows of a column, for each order from 2 to N. A plain integer stands for all orders."""
    pad_token_id: int = 0
    """Token id (not compressed) that blocked positions read as."""
    compressed_vocab_size: int = 0
    """Size of the token map that the model was trained with; 0 accepts that of any tokenizer."""
    gate: str = "sqrt"
    """"sqrt" is the released gate (demo and V4.1), "sigmoid" the paper's equation 4."""
    conv_kernel: int = 0
    """Taps of the short convolution, dilated by the largest n-gram order; 0 for no convolution."""
    row_format: str = "bf16"
    """How the tables store a row."""

    def __post_init__(self) -> None:
        check_types(self, PREFIX, _ZERO_ALLOWED)
        layers, orders = self.layer_ids, self.max_ngram_size - 1
        in_order = bool(layers) and list(layers) == sorted(set(layers))
        self._require(in_order, "layer_ids", "layers in ascending order, once each")
        self._require(orders >= 1, "max_ngram_size", "2 or more")
        self._require(orders < _LONGEST_NGRAM, "max_ngram_size", f"{_LONGEST_NGRAM} at most")
        most = _MOST_COLUMNS // (len(layers) * orders)
        self._require(self.n_heads <= most, "n_heads", f"{most} at most, with {len(layers)} layers of {orders} orders")
        self._require(
            len(self.vocab_size) == orders, "vocab_size", f"one number for each of the {orders} n-gram orders"
        )
        largest = LARGEST_INTEGER // (2 * _MOST_COLUMNS)
        self._require(max(self.vocab_size) <= largest, "vocab_size", f"numbers of at most {largest}")
        self._require(self.gate in GATES, "gate", f"one of {GATES}")
        self._require(self.row_format in ROW_FORMATS, "row_format", f"one of {ROW_FORMATS}")
        whole = self.row_format != RowFormat.FP8_E4M3_UE8M0.value or self.head_dim % FP8_GROUP == 0
        self._require(whole, "head_dim", f"a multiple of {FP8_GROUP} for engram_row_format {self.row_format!r}")

    def _require(self, condition: bool, name: str, accepted: str) -> None:
        require(condition, PREFIX + name, getattr(self, name), accepted)

    def check_backbone(self, vocab_size: int, num_hidden_layers: int) -> None:
        """Raise ValueError unless the layers and the padding token exist in a backbone of this size."""
        last, pad = num_hidden_layers - 1, self.pad_token_id
        self._require(self.layer_ids[-1] <= last, "layer_ids", f"layers 0 to {last} in ascending order, once each")
        self._require(pad < vocab_size, "pad_token_id", f"a token id below vocab_size={vocab_size}")

    @property
    def columns(self) -> int:
        """Columns of one table: (N-1) orders times K heads."""
        return (self.max_ngram_size - 1) * self.n_heads

    @property
    def width(self) -> int:
        """Values that one position gets from one table."""
        return self.columns * self.head_dim

    @property
    def conv_history(self) -> int:
        """Earlier positions that the short convolution looks back to."""
        return max(0, self.conv_kernel - 1) * self.max_ngram_size

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> EngramConfig | None:
        """Read the `engram_*` keys of a `config.json`; None where it names no Engram layers.

        Raises:
            ValueError: naming the key, its value and what is accepted.
        """
        if raw.get("engram_layer_ids") in (None, [], ()):
            return None
        values = {name: raw.get(PREFIX + name) for name in _names()}
        return cls(**_normalised({name: value for name, value in values.items() if value is not None}))

    def to_dict(self) -> dict[str, Any]:
        """Return the keys that `from_dict` reads."""
        return {PREFIX + name: getattr(self, name) for name in _names()}


def check_keys(raw: Mapping[str, Any]) -> None:
    """Raise ValueError for an `engram_*` key that nothing reads, which a misspelt one would be."""
    known = {PREFIX + name for name in _names()} | _FOLLOWS
    for name in raw:
        unknown = name.startswith(PREFIX) and name not in known
        require(not unknown, name, raw[name], "a known engram_* key; check its spelling")


def _names() -> list[str]:
    return [field.name for field in dataclasses.fields(EngramConfig)]


def _normalised(values: dict[str, Any]) -> dict[str, Any]:
    """Bring JSON's looser forms, lists and one size for all orders, to the fields' types."""
    for name in ("layer_ids", "vocab_size"):
        if isinstance(values.get(name), list):
            values[name] = tuple(values[name])
    if is_whole(values.get("vocab_size")):
        longest = values.get("max_ngram_size", EngramConfig.max_ngram_size)
        orders = min(longest, _LONGEST_NGRAM) - 1 if is_whole(longest, 2) else 1
        values["vocab_size"] = (values["vocab_size"],) * orders
    return values

"""The n-gram hasher of a configured model."""

from __future__ import annotations

from memory_service.tables.rows import RowFormat
from memory_service.tables.spec import TableSpec
from reasoning.config.engram import EngramConfig
from reasoning.engram.hashing import HashGeometry, NgramHasher
from reasoning.engram.token_map import TokenMap
from reasoning.text.tokenizer import Tokenizer


def build_hasher(config: EngramConfig, tokenizer: Tokenizer) -> NgramHasher:
    """Return the hasher for a model's Engram layers and its tokenizer.

    Raises:
        ValueError: the tokenizer does not compress to the size that the model was trained with.
    """
    token_map = TokenMap.build(tokenizer)
    expected = config.compressed_vocab_size
    if expected and token_map.size != expected:
        raise ValueError(
            f"tokenizer: it compresses to {token_map.size} ids, config.json says engram_compressed_vocab_size="
            f"{expected}; use the tokenizer.json that came with the model"
        )
    geometry = HashGeometry(
        layer_ids=config.layer_ids,
        max_ngram=config.max_ngram_size,
        heads=config.n_heads,
        head_dim=config.head_dim,
        vocab_sizes=config.vocab_size,
        pad_token_id=config.pad_token_id,
    )
    return geometry.for_token_map(token_map)


def table_specs(config: EngramConfig, hasher: NgramHasher) -> list[TableSpec]:
    """Return the tables that the model reads, one for each Engram layer, as the memory must hold them."""
    return hasher.table_specs(RowFormat(config.row_format))

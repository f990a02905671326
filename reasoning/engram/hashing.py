"""Which memory rows a position reads: n-gram hashes of compressed token ids, for every Engram layer at once.

A layer has C = (max_ngram - 1) * heads columns, order-major (the 2-gram's heads first); column c owns a prime number
of rows. With compressed ids x and the layer's multipliers m, an n-gram ending at p mixes to
`x[p]*m[0] ^ x[p-1]*m[1] ^ ... ^ x[p-n+1]*m[n-1]`, and its row is `offset(c) + mix % prime(c)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np

from memory_service.tables.rows import RowFormat
from memory_service.tables.spec import DEFAULT_BLOCK_ROWS, TableSpec
from reasoning.engram.token_map import TokenMap

_SEED_STEP = 10007  # the generator of a layer's multipliers is seeded with this times the layer id
_INT64_MAX = 2**63 - 1
_BLOCK = 2048  # positions hashed at a time: two layers of 24 columns then stay inside a 2 MB level-2 cache


@dataclass(frozen=True)
class HashGeometry:
    """The numbers that fix every column, prime and offset of a model's memory."""

    layer_ids: tuple[int, ...]
    """Layers with a memory, ascending, counted from 0. Primes are drawn in this order."""
    max_ngram: int
    """The longest n-gram, N >= 2; orders 2..N are hashed."""
    heads: int
    """Independent hashes per order, K."""
    head_dim: int
    """Values in one row."""
    vocab_sizes: tuple[int, ...]
    """Per order 2..N, where the search for primes starts: about the number of rows of one column."""
    pad_token_id: int
    """Raw token id that stands for a position that an n-gram cannot see."""

    def __post_init__(self) -> None:
        for name in ("layer_ids", "vocab_sizes"):
            if not isinstance(getattr(self, name), tuple):
                raise ValueError(f"{name} = {getattr(self, name)!r} must be a tuple of integers")
        for name, least in (("max_ngram", 2), ("heads", 1), ("head_dim", 1), ("pad_token_id", 0)):
            _check_integer(name, getattr(self, name), least)
        for index, layer in enumerate(self.layer_ids):
            _check_integer(f"layer_ids[{index}]", layer, 0)
        for index, size in enumerate(self.vocab_sizes):
            _check_integer(f"vocab_sizes[{index}]", size, 2)
        if not self.layer_ids or list(self.layer_ids) != sorted(set(self.layer_ids)):
            raise ValueError(
                f"layer_ids = {self.layer_ids} must name at least one layer, in ascending order, once each"
            )
        if len(self.vocab_sizes) != self.max_ngram - 1:
            raise ValueError(
                f"vocab_sizes = {self.vocab_sizes} must have one entry for each order from 2 to "
                f"max_ngram = {self.max_ngram}, so {self.max_ngram - 1}"
            )

    @property
    def columns(self) -> int:
        """Columns of one layer, C."""
        return (self.max_ngram - 1) * self.heads

    @property
    def primes(self) -> tuple[tuple[int, ...], ...]:
        """Rows of each column, [layer][column]. No prime occurs twice, in all layers together."""
        return _draw_primes(len(self.layer_ids), self.heads, self.vocab_sizes)

    def multipliers(self, compressed_size: int) -> tuple[tuple[int, ...], ...]:
        """Odd multipliers, [layer][look-back], such that no product with an id below `compressed_size` overflows."""
        bound = max(1, _INT64_MAX // compressed_size // 2)
        generators = (np.random.default_rng(_SEED_STEP * layer) for layer in self.layer_ids)
        return tuple(tuple((g.integers(0, bound, self.max_ngram, np.int64) * 2 + 1).tolist()) for g in generators)

    def for_token_map(self, token_map: TokenMap) -> NgramHasher:
        """Return the hasher of a model of this geometry whose tokenizer compresses as `token_map`."""
        return NgramHasher(self, token_map)


class NgramHasher:
    """Token ids to row ids, for all Engram layers of one model. Holds no state between calls.

    primes and offsets are [layer][column], multipliers [layer][look-back], all in the order of `layer_ids`; `pad_id`
    is the compressed pad id.

    **Look-back.** A position before the sequence's start, in another document, or blocked reads as `pad_id`, and so
    does every position before it. A chunk hashes as it would inside its whole sequence if the (up to) max_ngram - 1
    tokens before it are given as its history; a shorter history means that the sequence starts there.
    """

    def __init__(self, geometry: HashGeometry, token_map: TokenMap) -> None:
        if geometry.pad_token_id >= token_map.vocab_size:
            raise ValueError(
                f"pad_token_id = {geometry.pad_token_id} is outside the vocabulary of {token_map.vocab_size} ids; "
                "use the tokenizer that the model was trained with"
            )
        self.geometry = geometry
        self.token_map = token_map
        self.layer_ids = geometry.layer_ids
        self.primes = geometry.primes
        self.offsets = tuple(tuple(np.cumsum((0, *column_rows[:-1])).tolist()) for column_rows in self.primes)
        self.multipliers = geometry.multipliers(token_map.size)
        self.pad_id = int(token_map.ids[geometry.pad_token_id])

        by_order = (len(self.layer_ids), 1, geometry.max_ngram - 1, geometry.heads)
        self._primes = np.array(self.primes, dtype=np.int64).reshape(by_order)
        self._offsets = np.array(self.offsets, dtype=np.int64).reshape(by_order)
        self._multipliers = np.array(self.multipliers, dtype=np.int64)[:, :, None]

    @property
    def history_length(self) -> int:
        """How many tokens before a chunk its hashes can depend on."""
        return self.geometry.max_ngram - 1

    def hash(
        self,
        token_ids: Sequence[int] | np.ndarray,
        history: Sequence[int] | np.ndarray = (),
        *,
        blocked: Sequence[bool] | np.ndarray | None = None,
        history_blocked: Sequence[bool] | np.ndarray | None = None,
        documents: Sequence[int] | np.ndarray | None = None,
        history_documents: Sequence[int] | np.ndarray | None = None,
    ) -> dict[int, np.ndarray]:
        """Return the row ids of a chunk of T tokens: layer id -> int64 [T, C], column offsets included.

        Args:
            token_ids: raw ids [T].
            history: raw ids just before the chunk; only the last max_ngram - 1 matter.
            blocked: bool [T], true where a position is no text (image, padding).
            history_blocked: the same for `history`.
            documents: integers [T], equal where packed positions belong to the same document; n-grams do not see
                other documents.
            history_documents: the same for `history`.

        Raises:
            ValueError: names the first id outside the vocabulary, or the array whose length does not fit.
        """
        chunk, past = _id_array("token_ids", token_ids), _id_array("history", history)
        self._check_ids("token_ids", chunk)
        self._check_ids("history", past)
        if len(past) and (documents is None) != (history_documents is None):
            raise ValueError("documents and history_documents must be given together when there is a history")
        ids = np.concatenate([past, chunk])
        mask = _join("blocked", (history_blocked, len(past)), (blocked, len(chunk)), np.bool_)
        labels = _join("documents", (history_documents, len(past)), (documents, len(chunk)), np.int64)
        return self._rows(self._look_back(ids, mask, labels)[:, len(past) :])

    def hash_batch(
        self,
        chunks: Sequence[Sequence[int] | np.ndarray],
        histories: Sequence[Sequence[int] | np.ndarray] | None = None,
    ) -> dict[int, np.ndarray]:
        """Return the row ids of the chunks of many sequences, end to end: layer id -> int64 [sum of lengths, C].

        The results are those of `hash(chunk, history)` stacked, computed in a few array operations for the whole batch.
        """
        if histories is not None and len(histories) != len(chunks):
            raise ValueError(f"histories holds {len(histories)} sequences, chunks {len(chunks)}: give one for each")
        names = [f"{kind}[{i}]" for i in range(len(chunks)) for kind in ("histories", "chunks")]
        pasts = histories if histories is not None else [()] * len(chunks)
        sequences = [part for pair in zip(pasts, chunks, strict=True) for part in pair]
        parts = [_id_array(name, part) for name, part in zip(names, sequences, strict=True)]
        ids = np.concatenate([np.zeros(0, np.int64), *parts])
        if _outside(ids, self.token_map.vocab_size).any():
            for name, part in zip(names, parts, strict=True):
                self._check_ids(name, part)
        owner = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        seen = self._look_back(ids, np.zeros(len(ids), np.bool_), owner // 2)
        return self._rows(seen[:, owner % 2 == 1])

    def table_specs(self, row_format: RowFormat | str, block_rows: int = DEFAULT_BLOCK_ROWS) -> list[TableSpec]:
        """Return the tables that these hashes index, one for each layer, named `engram.<layer id>`."""
        return [
            TableSpec(
                name=f"engram.{layer}",
                layer=layer,
                column_rows=column_rows,
                max_ngram=self.geometry.max_ngram,
                heads=self.geometry.heads,
                multipliers=multipliers,
                pad_id=self.pad_id,
                token_map_sha256=self.token_map.sha256,
                dim=self.geometry.head_dim,
                row_format=RowFormat(row_format),
                block_rows=block_rows,
            )
            for layer, column_rows, multipliers in zip(self.layer_ids, self.primes, self.multipliers, strict=True)
        ]

    def _check_ids(self, name: str, ids: np.ndarray) -> None:
        outside = _outside(ids, self.token_map.vocab_size)
        if outside.any():
            position = int(outside.argmax())
            raise ValueError(
                f"{name}[{position}] = {ids[position]} is outside the vocabulary of {self.token_map.vocab_size} ids; "
                "tokenize with the model's own tokenizer"
            )

    def _look_back(self, ids: np.ndarray, blocked: np.ndarray, documents: np.ndarray) -> np.ndarray:
        """Return the compressed id k positions back, or the pad id where it cannot be seen: [max_ngram, T]."""
        compressed = self.token_map.ids[ids]
        seen = np.full((self.geometry.max_ngram, len(ids)), self.pad_id, dtype=np.int64)
        in_sight = ~blocked
        np.copyto(seen[0], compressed, where=in_sight)
        for back in range(1, self.geometry.max_ngram):
            # in_sight[p] now means: position p sees `back` positions back, with nothing blocked in between.
            in_sight = in_sight[1:] & ~blocked[:-back] & (documents[back:] == documents[:-back])
            np.copyto(seen[back, back:], compressed[:-back], where=in_sight)
        return seen

    def _rows(self, seen: np.ndarray) -> dict[int, np.ndarray]:
        """Return the row ids of positions that see `seen` [max_ngram, T]."""
        layers, _, orders, heads = self._primes.shape
        total = seen.shape[1]
        rows = np.empty((layers, total, orders, heads), dtype=np.int64)
        for start in range(0, total, _BLOCK):
            mixes = np.bitwise_xor.accumulate(seen[:, start : start + _BLOCK] * self._multipliers, axis=1)
            by_position = mixes[:, 1:].transpose(0, 2, 1)[..., None]
            block = rows[:, start : start + _BLOCK]
            np.remainder(by_position, self._primes, out=block)
            block += self._offsets
        return {layer: rows[i].reshape(total, orders * heads) for i, layer in enumerate(self.layer_ids)}


@lru_cache(maxsize=16)
def _draw_primes(layers: int, heads: int, vocab_sizes: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Draw for each layer, order and head in turn the next unused prime, starting at the order's vocabulary size."""
    from sympy import nextprime  # a quarter of a second to import, and only needed once

    next_prime = cache(nextprime)
    taken: dict[int, None] = {}
    for _ in range(layers):
        for size in vocab_sizes:
            prime = size - 1
            for _ in range(heads):
                prime = next_prime(prime)
                while prime in taken:
                    prime = next_prime(prime)
                taken[prime] = None
    drawn, columns = list(taken), len(vocab_sizes) * heads
    return tuple(tuple(drawn[i : i + columns]) for i in range(0, len(drawn), columns))


def _check_integer(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} = {value!r} must be an integer of at least {least}")


def _id_array(name: str, ids: Sequence[int] | np.ndarray) -> np.ndarray:
    array = np.asarray(ids)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"{name} must be a one-dimensional sequence of integers, not {array.dtype} {array.shape}")
    return array.astype(np.int64, copy=False)


def _outside(ids: np.ndarray, vocab_size: int) -> np.ndarray:
    # As unsigned numbers negative ids are huge, so a single comparison finds both kinds.
    return ids.view(np.uint64) >= vocab_size


def _join(
    name: str,
    past: tuple[Sequence | np.ndarray | None, int],
    chunk: tuple[Sequence | np.ndarray | None, int],
    dtype: type[np.generic],
) -> np.ndarray:
    """Return a property of the history followed by that of the chunk; zeros where it is not given."""
    parts = []
    for prefix, (values, length) in (("history_", past), ("", chunk)):
        array = np.zeros(length, dtype) if values is None else np.asarray(values, dtype)
        if array.shape != (length,):
            raise ValueError(f"{prefix}{name} has shape {array.shape}; give one value for each of the {length} tokens")
        parts.append(array)
    return np.concatenate(parts)

"""Token ids of a batch -> the memory rows that each position reads, for every layer and column, exact in int64.

For tables that the device reads itself. The engine hashes on the host (`reasoning/hashing.py`): the ids of sampled
tokens are needed there anyway, and from there the rows' ids leave for the shards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.dispatch import use_triton


@dataclass(frozen=True)
class HashTables:
    """What fixes the hashes of L layers: C = (N - 1) * heads columns each, the 2-gram's heads first; all int64."""

    token_map: Tensor
    """Compressed id of each token id, [V]."""
    multipliers: Tensor
    """[L, N]; positive, and small enough that no product with a compressed id leaves int64."""
    primes: Tensor
    """Rows of each column, [L, C]."""
    offsets: Tensor
    """Row of the table with which each column begins, [L, C]."""
    reciprocals: Tensor
    """floor(2**64 / prime), the bits of unsigned numbers, [L, C]: what turns a division into a multiplication."""
    pad_id: int
    """Compressed id that an unseen position reads as."""

    @classmethod
    def build(
        cls,
        token_map: Tensor,
        multipliers: Sequence[Sequence[int]],
        primes: Sequence[Sequence[int]],
        pad_id: int,
    ) -> HashTables:
        """Put the numbers of a model's hasher on the device of its token map."""
        device = token_map.device
        rows = torch.tensor(primes, device=device)
        reciprocals = [[_as_signed(2**64 // prime) for prime in layer] for layer in primes]
        return cls(
            token_map,
            torch.tensor(multipliers, device=device),
            rows,
            rows.cumsum(1) - rows,
            torch.tensor(reciprocals, device=device),
            pad_id,
        )

    @property
    def max_ngram(self) -> int:
        """The longest n-gram, N."""
        return self.multipliers.shape[1]

    @property
    def heads(self) -> int:
        """Columns of each n-gram order."""
        return self.primes.shape[1] // (self.max_ngram - 1)


def ngram_hash(
    ids: Tensor, sequences: Tensor, positions: Tensor, tables: HashTables, blocked: Tensor | None = None
) -> Tensor:
    """Return `offset + mix mod prime` of every column; an n-gram ending at p mixes to x[p]*m[0] ^ x[p-1]*m[1] ^ ...

    A position before the first, of another sequence, or blocked reads as the pad id, and so does everything further
    back: chunks hash as they would inside their whole sequences when the N - 1 tokens before each come along.

    Args:
        ids: the requests' histories and chunks, laid end to end, [S] int64, each below the vocabulary's size.
        sequences: equal where positions may see each other (one request, one document of packed data), [S] int64.
        positions: those whose rows are wanted, such as the chunks without their histories, [T] int64.
        tables: the model's constants, on the same device.
        blocked: [S] bool, true where a position is no text (image, padding). None: nowhere.

    Returns:
        [L, T, C] int64.
    """
    if use_triton(ids, sequences, positions):
        from kernels.gpu.ngram_hash import ngram_hash as hash_positions

        return hash_positions(ids, sequences, positions, tables, blocked)
    mix, orders = torch.zeros((), dtype=torch.int64, device=ids.device), []
    in_sight = torch.ones_like(positions, dtype=torch.bool)
    for back in range(tables.max_ngram):
        place = (positions - back).clamp_min(0)
        in_sight = in_sight & (positions >= back) & (sequences[place] == sequences[positions])
        if blocked is not None:
            in_sight = in_sight & ~blocked[place]
        seen = torch.where(in_sight, tables.token_map[ids[place]], tables.pad_id)
        mix = mix ^ (seen * tables.multipliers[:, back, None])
        if back:
            orders.append(_rows_of_order(mix, back, tables))
    return torch.cat(orders, dim=2)


def _rows_of_order(mix: Tensor, back: int, tables: HashTables) -> Tensor:
    """Rows [L, T, heads] of the order that looks `back` positions back."""
    columns = slice((back - 1) * tables.heads, back * tables.heads)
    return mix[..., None] % tables.primes[:, None, columns] + tables.offsets[:, None, columns]


def _as_signed(bits: int) -> int:
    return bits - 2**64 if bits >= 2**63 else bits

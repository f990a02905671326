"""Memory tables during training: fp32 rows in this process, updated row by row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from kernels.row_unpack import row_expand
from memory_service.learning.row_adam import AdamConfig, RowAdam
from memory_service.tables.rows import pack_rows
from memory_service.tables.spec import TableSpec


class TrainableTables:
    """An fp32 table for each Engram layer, initialised from N(0, std)."""

    def __init__(self, specs: Sequence[TableSpec], adam: AdamConfig, std: float, seed: int):
        rng = np.random.default_rng(seed)
        self.values = {spec.layer: _normal(rng, (spec.rows, spec.dim), std) for spec in specs}
        self._adam = {layer: RowAdam(values, adam) for layer, values in self.values.items()}

    def gather(self, rows: dict[int, np.ndarray]) -> GatheredRows:
        """Return the rows of a batch, given each layer's ids as [T, C]."""
        return GatheredRows(self.values, rows)

    def step(self, gathered: GatheredRows, scale: float) -> None:
        """Apply the gradients of a backward pass; `scale` multiplies the learning rate."""
        for layer, (unique, gradients) in gathered.gradients():
            self._adam[layer].step(unique, gradients, scale)

    def packed_blocks(self, spec: TableSpec) -> Iterator[np.ndarray]:
        """Yield a table's blocks in order, packed as `spec` says, [block rows, row_bytes] uint8."""
        values = self.values[spec.layer]
        for begin in range(0, len(values), spec.block_rows):
            yield pack_rows(values[begin : begin + spec.block_rows], spec.row_format)


class GatheredRows:
    """The unique rows of a batch as leaves of the autograd graph."""

    def __init__(self, values: dict[int, np.ndarray], rows: dict[int, np.ndarray]):
        self._unique: dict[int, np.ndarray] = {}
        self._inverse: dict[int, Tensor] = {}
        self._leaves: dict[int, Tensor] = {}
        for layer, ids in rows.items():
            unique, inverse = np.unique(ids, return_inverse=True)
            self._unique[layer] = unique
            self._inverse[layer] = torch.from_numpy(inverse.reshape(ids.shape))
            self._leaves[layer] = torch.from_numpy(values[layer][unique]).requires_grad_()

    def __call__(self, layer: int) -> Tensor:
        """Return the layer's embeddings, [T, C * D]."""
        return row_expand(self._leaves[layer], self._inverse[layer]).flatten(1)

    def gradients(self) -> Iterator[tuple[int, tuple[np.ndarray, np.ndarray]]]:
        """Yield (layer, (unique row ids [U], summed gradients [U, D])) after a backward pass."""
        for layer, leaf in self._leaves.items():
            assert leaf.grad is not None, f"layer {layer}: no backward pass has reached the memory"
            yield layer, (self._unique[layer], leaf.grad.numpy())


def _normal(rng: np.random.Generator, shape: tuple[int, int], std: float) -> np.ndarray:
    values = rng.standard_normal(shape, dtype=np.float32)
    values *= std
    return values

"""How the tensors of a checkpoint correspond to the parameters and buffers of a backbone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

Shape = tuple[int, ...]


class Place(NamedTuple):
    """A parameter or buffer of a backbone, or a slice of it."""

    name: str
    """Its name in the backbone's state dict."""
    part: tuple[int | slice, ...] = ()
    """The slice that is meant; empty for all of it."""

    def of(self, state: Mapping[str, Tensor]) -> Tensor:
        """Return the storage, which is a view of the state dict's tensor."""
        return state[self.name][self.part] if self.part else state[self.name]


class Weight(NamedTuple):
    """A tensor of a checkpoint and the storage that it fills.

    Where there are several places, the tensor's rows are divided among them by turns: `turns` times, some rows go to
    the first place, the next ones to the second, and so on. Each place is then [turns, rows, columns].
    """

    name: str
    """Its name in the checkpoint."""
    shape: Shape
    """Its shape in the checkpoint, which follows from the configuration by arithmetic alone."""
    places: tuple[Place, ...]
    turns: int = 1
    """How often the rows go round the places."""
    fp32: bool = False
    """Saved in fp32, whatever the dtype of the other tensors."""
    copy: bool = False
    """Whether it repeats another tensor, for other engines to read: written when saved, ignored when loaded."""

    def fill(self, state: Mapping[str, Tensor], tensor: Tensor) -> None:
        """Copy the checkpoint's tensor to its places."""
        storage = self._storage(state)
        if len(storage) == 1:
            storage[0].copy_(tensor)
            return
        turns = tensor.unflatten(0, (self.turns, -1)).split([place.shape[1] for place in storage], dim=1)
        for place, rows in zip(storage, turns, strict=True):
            place.copy_(rows)

    def gather(self, state: Mapping[str, Tensor]) -> Tensor:
        """Return the checkpoint's tensor, put together from its places."""
        storage = self._storage(state)
        return storage[0] if len(storage) == 1 else torch.cat(storage, dim=1).flatten(0, 1)

    def _storage(self, state: Mapping[str, Tensor]) -> list[Tensor]:
        return [place.of(state) for place in self.places]

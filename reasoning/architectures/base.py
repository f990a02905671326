"""What the rest of the project may know of an architecture: its configuration, backbone, cache and weights.

An architecture is a folder beside this file with one subclass of each of these classes, and a line in `registry.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from reasoning.architectures.weights import Weight
from reasoning.config.engram import EngramConfig
from reasoning.model.batch import PAGE_TOKENS, Batch

RowSource = Callable[[int], Tensor]
"""Layer -> that layer's memory rows for the batch, [T, C * D]. Called when the layer needs them; it may wait."""


class ModelConfig(Protocol):
    """The part of a configuration that every architecture has, under the names of Hugging Face's `config.json`."""

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding, which is the number of logits."""

    @property
    def max_position_embeddings(self) -> int:
        """Positions that the model was trained for."""

    @property
    def num_hidden_layers(self) -> int:
        """Layers of the backbone."""

    @property
    def initializer_range(self) -> float:
        """Standard deviation of matrices and memory rows before training."""

    @property
    def bos_token_id(self) -> int | None:
        """Token id that begins a text."""

    @property
    def eos_token_id(self) -> tuple[int, ...]:
        """Token ids that end a completion."""

    @property
    def engram(self) -> EngramConfig | None:
        """The layers with a memory; None for a plain backbone."""

    def to_dict(self) -> dict[str, Any]:
        """Return the content of a `config.json`, with its `model_type`."""


class Cache(ABC):
    """What a backbone keeps of the tokens that it has seen, in pages that sequences own or share.

    What is kept of a position follows from the tokens up to it and nothing else, and lies in the position's own page.
    So a shared prefix, a sequence that was preempted and a draft that was rejected need no state besides their pages,
    and nothing needs clearing: a position is read only by sequences that have written it or share it.
    """

    @property
    @abstractmethod
    def pages(self) -> int:
        """Number of pages, each of which holds PAGE_TOKENS positions in all layers."""

    @property
    @abstractmethod
    def tensors(self) -> Sequence[Tensor]:
        """Everything that is kept, at least one tensor."""

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.tensors[0].device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of what is kept."""
        return self.tensors[0].dtype

    @property
    def bytes_per_token(self) -> int:
        """Memory that one position takes in all layers, rounded up."""
        return -(-sum(tensor.nbytes for tensor in self.tensors) // (self.pages * PAGE_TOKENS))


class Backbone(nn.Module, ABC):
    """Token ids in, hidden states out; `logits` turns chosen hidden states into scores over the vocabulary.

    Hidden states are [T, ...]: what the axes after T mean is known to `logits` and `predict_ahead` of the same backbone
    alone, so that an architecture may hand on several streams. Others select along T.
    """

    config: ModelConfig

    checkpoint_activations = False
    """In training, keep the inputs of layers only and compute what is inside again in the backward pass."""

    @abstractmethod
    def forward(self, batch: Batch, rows: RowSource | None = None, cache: Any = None) -> Tensor:
        """Run a batch through every layer.

        Args:
            batch: T tokens of B sequences.
            rows: the memory's rows; None leaves the memory out.
            cache: made by `new_cache` and extended with the batch; None when all sequences start here, equally long.

        Returns:
            Hidden states, [T, ...].
        """

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [n, ...] -> [n, vocabulary]."""

    @abstractmethod
    def new_cache(self, pages: int) -> Cache:
        """Allocate a cache on the device of the weights and in their dtype."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights, and of memory rows that come in."""
        return next(self.parameters()).dtype

    @property
    def has_mtp(self) -> bool:
        """Whether there is multi-token prediction, that is whether `predict_ahead` works."""
        return False

    def predict_ahead(self, hidden: Tensor, batch: Batch, cache: Any) -> Tensor:
        """Take one step of multi-token prediction.

        Args:
            hidden: hidden states of T positions, from `forward` or from an earlier step, [T, ...].
            batch: these positions; its `token_ids` are the tokens that *follow* each of them.
            cache: extended with what the prediction keeps; None as for `forward`.

        Returns:
            [T, ...]: `logits` scores by it the token after the one that follows, and a further step takes it as the
            hidden states of the positions one further on.
        """
        raise NotImplementedError(f"{type(self).__name__} has no multi-token prediction")

    @property
    def decodes_by_graphs(self) -> bool:
        """Whether steps of one token a sequence can be recorded as CUDA graphs where the weights are now."""
        return False

    @abstractmethod
    def initialise(self, generator: torch.Generator) -> Backbone:
        """Draw random weights for training; returns itself."""

    def tie_weights(self) -> None:
        """Make modules share the weights that they have in common, which moving off the meta device separates."""

    def precise_modules(self) -> Iterator[nn.Module]:
        """Yield modules whose weights stay in fp32, whatever the dtype of the others."""
        return iter(())

    def expert_loads(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each router's correction bias [E], and the tokens [E] that its experts got in the last forward pass."""
        return iter(())

    def sequence_balance(self, batch: Batch) -> Tensor:
        """Loss of uneven experts within each sequence of the last forward pass in training, summed over the layers.

        Args:
            batch: that of the pass, of sequences of equal length.
        """
        return torch.zeros((), device=self.device)

    def gate_means(self) -> Iterator[tuple[int, Tensor]]:
        """Yield each Engram layer, and the part of the memory's values that its gate let through in training.

        It is the ratio of root mean squares after and before the gate, in the last forward pass.
        """
        return iter(())


_Config = TypeVar("_Config", bound=ModelConfig)


class Architecture(ABC, Generic[_Config]):
    """How a configuration is read, a backbone built, and the tensors of its checkpoints named."""

    @abstractmethod
    def read_config(self, raw: Mapping[str, Any]) -> _Config:
        """Read a `config.json`.

        Raises:
            ValueError: naming the field, its value and what is accepted.
        """

    @abstractmethod
    def build(self, config: _Config) -> Backbone:
        """Make a backbone on torch's default device; its weights hold nothing yet."""

    @abstractmethod
    def weights(self, config: _Config, stored: Container[str] = ()) -> Iterator[Weight]:
        """Yield the tensors of a checkpoint, lazily: no more is computed than has been taken.

        Args:
            config: says which there are, and their shapes.
            stored: names that the checkpoint has; they decide between spellings where an architecture has several.
        """

    def settle(self, config: _Config, stored: Collection[str]) -> _Config:
        """Return the configuration that a checkpoint with these tensors fits: optional parts may be absent from it."""
        return config

    def ignores(self, config: _Config, name: str) -> bool:
        """Whether a checkpoint's tensor of this name belongs to a part that the backbone does without."""
        return False

"""What training minimises: cross-entropy of the next token, balance of experts, and prediction of the token after."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reasoning.architectures.base import Backbone, RowSource
from reasoning.model.batch import Batch
from reasoning.training.config import TrainingConfig

_IGNORED = -100


class Objective(nn.Module):
    """A backbone with its losses: the module that data-parallel training wraps."""

    def __init__(self, backbone: Backbone, config: TrainingConfig) -> None:
        """Wrap a backbone.

        Raises:
            ValueError: a loss is asked for which the backbone has no layer or router for.
        """
        super().__init__()
        self.backbone, self.config = backbone, config
        if config.mtp_weight and not backbone.has_mtp:
            raise ValueError(f"mtp_weight: {config.mtp_weight}, but the model has no layer of multi-token prediction")

    def forward(self, tokens: Tensor, scored: Tensor, rows: RowSource | None) -> tuple[Tensor, Tensor]:
        """Run sequences and score them.

        Args:
            tokens: [B, S + 1] int64; each token but the first is predicted from those before it.
            scored: [B, S + 1] bool, the tokens whose prediction counts.
            rows: the memory's rows of the first S tokens.

        Returns:
            The loss, to be differentiated, and the cross-entropy in nats a token, both scalars.
        """
        config = self.config
        batch = Batch.of_whole_sequences(tokens[:, :-1])
        targets = torch.where(scored, tokens, _IGNORED)
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            hidden = self.backbone(batch, rows)
            entropy = self._cross_entropy(hidden, targets[:, 1:])
            loss = entropy
            if config.mtp_weight:
                loss = loss + config.mtp_weight * self._entropy_ahead(hidden, tokens, targets)
            if config.sequence_balance:  # of all layers that ran
                loss = loss + config.sequence_balance * self.backbone.sequence_balance(batch)
        return loss, entropy.detach()

    def _cross_entropy(self, hidden: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self.backbone.logits(hidden).float(), targets.reshape(-1), ignore_index=_IGNORED)

    def _entropy_ahead(self, hidden: Tensor, tokens: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of the token after the next; the last position has none."""
        following = Batch.of_whole_sequences(tokens[:, 1:])
        ahead = F.pad(targets[:, 2:], (0, 1), value=_IGNORED)
        return self._cross_entropy(self.backbone.predict_ahead(hidden, following, None), ahead)

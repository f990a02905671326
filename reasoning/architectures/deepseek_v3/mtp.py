"""Multi-token prediction: one more layer that guesses the token after the next (DeepSeek-V3, arXiv 2412.19437, 2.2).

At position i it sees the backbone's final hidden state h_i and the token t_{i+1}, and predicts t_{i+2}:

    g_i = layer(W [norm_e(embedding(t_{i+1})); norm_h(h_i)]),  logits of t_{i+2} = head(norm_s(g_i))

Embedding and head are the backbone's. Where the paper leaves something open or the released weights differ from it,
this follows the implementations that serve them (vLLM's `deepseek_mtp.py`, SGLang's `deepseek_nextn.py`):

- W takes the embedding first and the hidden state second; the paper writes them the other way round.
- h_i is the backbone's hidden state *after* its final norm, which is what both hand over.
- Further drafts put norm_s(g_i) in the place of h_{i+1} (SGLang; vLLM since its pull request 45895; ROCm/ATOM's pull
  request 1764 measured that DeepSeek-R1 accepts 65 % of three drafts so, and 61 % with g_i itself).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from reasoning.architectures.deepseek_v3.config import ModelConfig
from reasoning.model.batch import PAGE_TOKENS, Batch, Cache
from reasoning.model.norm import RMSNorm

if TYPE_CHECKING:
    from reasoning.architectures.deepseek_v3.backbone import DecoderLayer, Transformer


class MultiTokenPrediction(nn.Module):
    """The layer and what surrounds it, without embedding and head."""

    def __init__(self, config: ModelConfig, layer: DecoderLayer):
        """Wrap `layer`, whose latents lie behind those of the backbone's layers."""
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.enorm, self.hnorm = RMSNorm(hidden, eps=eps), RMSNorm(hidden, eps=eps)
        self.eh_proj = nn.Linear(2 * hidden, hidden, bias=False)
        self.layer = layer
        self.shared_head = nn.ModuleDict({"norm": RMSNorm(hidden, eps=eps)})

    def forward(
        self, embedded: Tensor, hidden: Tensor, cos: Tensor, sin: Tensor, batch: Batch, cache: Cache | None
    ) -> Tensor:
        """Run the layer over T positions.

        Args:
            embedded: embeddings of the tokens that follow the positions, [T, hidden].
            hidden: final hidden states of the positions, [T, hidden].
            cos: [T, rope / 2] of each position.
            sin: like `cos`.
            batch: how the T positions divide into sequences.
            cache: extended with the batch; None as for `Transformer.forward`.

        Returns:
            [T, hidden], normalised: what the head takes, and further drafts in place of `hidden`.
        """
        joined = self.eh_proj(torch.cat((self.enorm(embedded), self.hnorm(hidden)), dim=-1))
        return self.shared_head["norm"](self.layer(joined, cos, sin, batch, None, cache))


class MtpDrafter:
    """Drafts for all sequences of a step at once."""

    def __init__(self, model: Transformer, vocab_size: int):
        """Draft token ids below `vocab_size` with the multi-token prediction of `model`."""
        if model.mtp is None:
            raise ValueError("drafts: this checkpoint has no multi-token prediction layer; use n-gram drafts")
        self._model, self._mtp, self._vocab_size = model, model.mtp, vocab_size

    def draft(self, hidden: Tensor, batch: Batch, counts: Sequence[int], cache: Cache) -> list[list[int]]:
        """Take in what a step brought and guess what comes after it.

        Every position that the backbone runs and keeps should come by here once, before any later one of its sequence:
        drafts are worse where attention meets latents of something else. At the end of a shared page it may, as there
        they depend on the token with which the page's first owner went on.

        Args:
            hidden: final hidden states of the T positions that the step ran, without those of rejected drafts,
                [T, hidden].
            batch: these positions, in `token_ids` the token that *follows* each: the prompt's, or the one chosen.
            counts: drafts wanted for each sequence; 0 where the prompt goes on.
            cache: extended with the T positions; those of drafts are overwritten once the backbone has run them.

        Returns:
            For each sequence its drafts, the likeliest tokens after `token_ids`' last: as many as are wanted, or as
            its pages have room for.
        """
        counts = [min(count, room + 1) for count, room in zip(counts, _room(batch), strict=True)]
        ahead = self._run(hidden, batch, cache)[batch.last_tokens]
        wanted = [i for i, count in enumerate(counts) if count > 0]
        ahead = ahead[wanted]
        tokens: list[Tensor] = []
        for step in range(max(counts, default=0)):
            if step:
                going = [row for row, i in enumerate(wanted) if counts[i] > step]
                wanted = [wanted[row] for row in going]
                ahead = self._run(ahead[going], _one_further(batch, tokens[-1][going], wanted, step), cache)
            tokens.append(self._model.logits(ahead)[:, : self._vocab_size].argmax(-1))
        return _by_sequence(tokens, counts)

    def _run(self, hidden: Tensor, batch: Batch, cache: Cache) -> Tensor:
        model, positions = self._model, batch.positions
        embedded = model.embed_tokens(batch.token_ids)
        return self._mtp(embedded, hidden, model.cos[positions], model.sin[positions], batch, cache)


def _room(batch: Batch) -> list[int]:
    """Positions that each sequence's pages have left after the batch."""
    ends = (start + length for start, length in zip(batch.starts, batch.lengths, strict=True))
    return [len(pages) * PAGE_TOKENS - end for pages, end in zip(batch.pages, ends, strict=True)]


def _one_further(batch: Batch, tokens: Tensor, sequences: list[int], step: int) -> Batch:
    """The position `step` after the end of each of some sequences, followed by its latest draft."""
    starts = tuple(batch.starts[i] + batch.lengths[i] + step - 1 for i in sequences)
    return Batch(tokens, (1,) * len(sequences), starts, tuple(batch.pages[i] for i in sequences))


def _by_sequence(tokens: list[Tensor], counts: Sequence[int]) -> list[list[int]]:
    """Deal out the drafts of each step, which are of the sequences that wanted as many."""
    steps = [iter(step) for step in torch.cat(tokens).cpu().split([len(step) for step in tokens])] if tokens else []
    return [[int(next(step)) for step in steps[:count]] for count in counts]

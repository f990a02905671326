"""Multi-token prediction: a further layer predicts the token after the next (DeepSeek-V3, arXiv 2412.19437, 2.2).

At position i it receives the backbone's final hidden state h_i and the token t_{i+1}, and predicts t_{i+2}:

    g_i = layer(W [norm_e(embedding(t_{i+1})); norm_h(h_i)]),  logits of t_{i+2} = head(norm_s(g_i))

Embedding and head are those of the backbone. Where the paper leaves something open or the released weights differ from
it, this follows the implementations that serve them (vLLM's `deepseek_mtp.py`, SGLang's `deepseek_nextn.py`):

- W takes the embedding first and the hidden state second; the paper has them in the opposite order.
- h_i is the backbone's hidden state *after* its final norm, as in both implementations.
- Further drafts use norm_s(g_i) in place of h_{i+1} (SGLang; vLLM since its pull request 45895; ROCm/ATOM's pull
  request 1764 measured that DeepSeek-R1 then accepts 65 % of three drafts, and 61 % with g_i itself).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reasoning.architectures.deepseek_v3.cache import LatentCache
from reasoning.architectures.deepseek_v3.config import DeepseekV3Config
from reasoning.architectures.deepseek_v3.decoder_layer import DecoderLayer
from reasoning.model.batch import Batch
from reasoning.model.norm import RMSNorm


class MultiTokenPrediction(nn.Module):
    """The layer with its norms and projection, without embedding and head. Its latents follow those of the backbone."""

    def __init__(self, config: DeepseekV3Config):
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.enorm, self.hnorm = RMSNorm(hidden, eps=eps), RMSNorm(hidden, eps=eps)
        self.eh_proj = nn.Linear(2 * hidden, hidden, bias=False)
        self.layer = DecoderLayer(config, config.num_hidden_layers)
        self.shared_head = nn.ModuleDict({"norm": RMSNorm(hidden, eps=eps)})

    def forward(
        self, embedded: Tensor, hidden: Tensor, cos: Tensor, sin: Tensor, batch: Batch, cache: LatentCache | None
    ) -> Tensor:
        """Run the layer over T positions.

        Args:
            embedded: embeddings of the tokens that follow the positions, [T, hidden].
            hidden: final hidden states of the positions, [T, hidden].
            cos: [T, rope / 2] of each position.
            sin: like `cos`.
            batch: how the T positions divide into sequences.
            cache: extended with the batch; None as for `Backbone.forward`.

        Returns:
            [T, hidden], normalised: the input of the head, and of further drafts in place of `hidden`.
        """
        joined = self.eh_proj(torch.cat((self.enorm(embedded), self.hnorm(hidden)), dim=-1))
        return self.shared_head["norm"](self.layer(joined, cos, sin, batch, None, cache))

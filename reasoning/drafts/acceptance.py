"""Verify drafts: the model's own choice decides, so that the output is the same as without drafts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from reasoning.sampling.sampler import Chosen, Sampler


def accept(
    sampler: Sampler, logits: Tensor, likeliest: Sequence[tuple[int, float]], drafts: Sequence[int]
) -> Iterator[Chosen]:
    """Choose the tokens that follow a sequence, for as long as its drafts are right.

    Row 0 of the logits belongs to the sequence's last token, row i + 1 to its i-th draft. A token is chosen from each
    row in turn, as if there were no drafts, until a token differs from the draft that the next row was computed from.
    So every token comes from the same distribution and the same state of the sampler as without drafts. This is
    speculative sampling (arXiv 2211.17192) with drafts that are certain of their token: a draft x is accepted with
    probability p(x), and otherwise the token drawn in its place has the remaining distribution.

    Args:
        sampler: the sequence's sampler.
        logits: [1 + drafts, vocabulary].
        likeliest: for each row the index of the highest logit, and that logit.
        drafts: tokens that the rows after the first were computed from.

    Yields:
        1 to 1 + len(drafts) choices. Nothing is chosen before the caller asks for it, so that it may stop at an
        end-of-text token.
    """
    assert len(logits) == len(likeliest) == len(drafts) + 1, (len(logits), len(likeliest), len(drafts))
    for row, (token, highest) in enumerate(likeliest):
        chosen = sampler.choose(logits[row], token, highest)
        yield chosen
        if row < len(drafts) and chosen.token != drafts[row]:
            return

"""Checking drafts: the model's own choice decides, so that what comes out is as without drafts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from reasoning.sampling.sampler import Chosen, Sampler


def accept(
    sampler: Sampler, logits: Tensor, likeliest: Sequence[tuple[int, float]], drafts: Sequence[int]
) -> Iterator[Chosen]:
    """Choose the tokens that follow a sequence, for as long as its drafts foretold them.

    Row 0 of the logits belongs to the sequence's last token, row i + 1 to its i-th draft. A token is chosen from each
    in turn, as if there were no drafts, and ends the step where it is not the draft that the next row was computed
    from. So every token comes from the same distribution and the same state of the sampler as without drafts. This is
    speculative sampling (arXiv 2211.17192) with drafts that are certain of their token: a draft x is accepted with
    probability p(x), and otherwise what was drawn in its place has the distribution that remains.

    Args:
        sampler: the sequence's own.
        logits: [1 + drafts, vocabulary].
        likeliest: of each row the index of the highest logit, and that logit.
        drafts: what the rows after the first were computed from.

    Yields:
        1 to 1 + len(drafts) choices. Nothing is chosen ahead of the consumer, who may stop at an end-of-text token.
    """
    assert len(logits) == len(likeliest) == len(drafts) + 1, (len(logits), len(likeliest), len(drafts))
    for row, (token, highest) in enumerate(likeliest):
        chosen = sampler.choose(logits[row], token, highest)
        yield chosen
        if row < len(drafts) and chosen.token != drafts[row]:
            return

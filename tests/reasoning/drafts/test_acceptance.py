"""Drafts change how many tokens a step brings, never which ones."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from reasoning.drafts.acceptance import accept
from reasoning.drafts.ngram import NgramDrafts
from reasoning.request import SamplingParams
from reasoning.sampling.sampler import Chosen, Sampler

VOCAB = 7
PROMPT = [0, 1]


class CountingSampler(Sampler):
    calls = 0

    def choose(self, *args) -> Chosen:
        self.calls += 1
        return super().choose(*args)


def logits_after(tokens: list[int]) -> torch.Tensor:
    """A toy model: what follows depends on the last two tokens alone, so that loops are likely."""
    return torch.randn(VOCAB, generator=torch.Generator().manual_seed(VOCAB * tokens[-2] + tokens[-1])) * 3


def choices(sampler: Sampler, logits: torch.Tensor, drafts: list[int]):
    highest, ids = logits.max(-1)
    return accept(sampler, logits, list(zip(ids.tolist(), highest.tolist(), strict=True)), drafts)


def step(sampler: Sampler, tokens: list[int], drafts: list[int]) -> list[Chosen]:
    rows = [logits_after(tokens + drafts[:count]) for count in range(len(drafts) + 1)]
    return list(choices(sampler, torch.stack(rows), drafts))


def generate(params: SamplingParams, count: int, drafts_a_step: int) -> tuple[list[Chosen], list[int]]:
    """Tokens, and how many each step brought."""
    sampler, ngrams, got, brought = CountingSampler(params, PROMPT), NgramDrafts(PROMPT), [], []
    while len(got) < count:
        chosen = step(sampler, PROMPT + [choice.token for choice in got], ngrams.propose(drafts_a_step))
        ngrams.extend(choice.token for choice in chosen)
        got += chosen
        brought.append(len(chosen))
    assert sampler.calls == len(got)
    return got[:count], brought


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 1.0, "seed": 1},
        {"temperature": 0.6, "seed": 2, "top_p": 0.9, "min_p": 0.05, "logprobs": 2},
        {"temperature": 1.0, "seed": 3, "repetition_penalty": 1.05, "presence_penalty": 0.1, "frequency_penalty": 0.01},
        {"repetition_penalty": 1.1, "logprobs": 1},
    ],
    ids=str,
)
def test_choices_are_the_same_with_and_without_drafts(params):
    expected, singly = generate(SamplingParams(**params), 120, drafts_a_step=0)
    for length in (1, 2, 5):
        got, brought = generate(SamplingParams(**params), 120, length)
        assert got == expected
        assert max(brought) == length + 1
        assert len(brought) < len(singly)


def test_the_first_wrong_draft_ends_the_step():
    right: list[int] = []
    for _ in range(4):
        right.append(int(logits_after(PROMPT + right).argmax()))
    wrong = [*right[:2], (right[2] + 1) % VOCAB, right[3]]
    for drafts, expected in ((wrong, right[:3]), (right[:3], right), ([], right[:1])):
        assert [choice.token for choice in step(Sampler(SamplingParams(), PROMPT), PROMPT, drafts)] == expected


def test_sampled_tokens_keep_their_distribution():
    logits, count = torch.tensor([[0.0, 1.0, 2.0], [2.0, 0.0, 0.0]]), 3000
    sampler, first, second = Sampler(SamplingParams(temperature=1.0, seed=5), PROMPT), Counter(), Counter()
    for _ in range(count):
        tokens = [choice.token for choice in choices(sampler, logits, [1])]
        first[tokens[0]] += 1
        second.update(tokens[1:])
    for observed, row in ((first, logits[0]), (second, logits[1])):
        shares = torch.tensor([observed[token] for token in range(3)]) / sum(observed.values())
        torch.testing.assert_close(shares, row.softmax(-1), atol=0.05, rtol=0)
    assert sum(second.values()) == first[1]


def test_nothing_is_chosen_past_where_the_consumer_stops():
    sampler = CountingSampler(SamplingParams(), PROMPT)
    verified = choices(sampler, torch.eye(3, VOCAB), [0, 1])
    assert next(verified).token == 0
    verified.close()
    assert sampler.calls == 1

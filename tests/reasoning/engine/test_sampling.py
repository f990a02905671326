"""What a request asks about sampling, through the engine: where it stops, what it reports, whom it concerns."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import torch

from reasoning.engine import Engine
from reasoning.request import Completion, Request, RequestFailure, SamplingParams
from tests.reasoning.conftest import END

PROMPT = "import math"


@pytest.fixture
def engine(tiny_dir):
    made = Engine.from_pretrained(tiny_dir)
    yield made
    made.close()


def ask(engine, prompt=PROMPT, **sampling):
    """The result of one request."""
    params = SamplingParams(**{"max_new_tokens": 12, "ignore_eos": True, **sampling})
    (result,) = engine.generate([Request("0", prompt, sampling=params)])
    return result


def test_a_stop_text_ends_a_completion_before_it_and_after_its_tokens(engine):
    whole = ask(engine)
    decode = engine.tokenizer.decode
    stop = next(character for character in whole.text[1:] if character != "\ufffd")
    result = ask(engine, stop=["never comes", stop])
    assert (result.text, result.finish_reason) == (whole.text[: whole.text.index(stop)], "stop")
    assert result.token_ids == whole.token_ids[: len(result.token_ids)]
    assert stop in decode(result.token_ids)
    assert stop not in decode(result.token_ids[:-1])


def test_a_stop_text_that_never_comes_changes_nothing(engine):
    assert ask(engine, stop="never comes") == ask(engine)
    almost = ask(engine).text[-2:] + "never comes"  # held back until the end, and then given out
    assert ask(engine, stop=almost) == ask(engine)


def test_a_stop_token_ends_a_completion_even_where_the_end_of_text_is_ignored(engine):
    whole = ask(engine).token_ids
    end = next(token for token in whole[2:] if whole.index(token) >= 2)
    engine.model.config = dataclasses.replace(engine.model.config, eos_token_id=(end,))
    assert ask(engine).token_ids == whole
    stopped = ask(engine, stop_token_ids=[end])
    assert (stopped.token_ids, stopped.finish_reason) == (whole[: whole.index(end) + 1], "stop")


def test_the_end_tokens_of_generation_config_join_those_of_config_json(engine, tiny_dir, tmp_path):
    whole = ask(engine).token_ids
    end = next(token for token in whole[2:] if whole.index(token) >= 2)
    shutil.copytree(tiny_dir, tmp_path, dirs_exist_ok=True)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [5000, end]}))
    other = Engine.from_pretrained(tmp_path)
    assert other.model.config.eos_token_id == (END, end)
    stopped = ask(other, ignore_eos=False)
    assert (stopped.token_ids, stopped.finish_reason) == (whole[: whole.index(end) + 1], "stop")
    assert ask(other).token_ids == whole
    other.close()


def test_a_stop_token_that_the_model_does_not_have_is_refused(engine):
    refused = ask(engine, stop_token_ids=[1, 257])
    assert (refused.field, refused.message) == ("stop_token_ids", "257 at position 1 is not a token id from 0 to 256")


def test_every_token_has_its_log_probability(engine):
    (choice,) = ask(engine, logprobs=2).choices
    assert [entry.token_id for entry in choice.logprobs] == list(choice.token_ids)
    assert all(entry.top[0] == (entry.token_id, entry.logprob) for entry in choice.logprobs)  # it is greedy
    assert all(0 > entry.top[0][1] >= entry.top[1][1] for entry in choice.logprobs)
    assert ask(engine).choices[0].logprobs is None


def test_penalties_keep_a_completion_from_repeating_itself(engine):
    assert len(set(ask(engine, "x" * 40, frequency_penalty=2.0, presence_penalty=2.0).token_ids)) == 12
    assert set(ask(engine, "x" * 40, repetition_penalty=100).token_ids).isdisjoint(engine.tokenizer.encode("x" * 40))


def test_a_stop_text_needs_a_tokenizer(plain_dir):
    engine = Engine.from_pretrained(plain_dir)
    params = SamplingParams(stop="x", max_new_tokens=1)
    (refused,) = engine.generate([Request("0", prompt_token_ids=(1, 2), sampling=params)])
    assert (refused.field, refused.retryable) == ("stop", False)
    assert "stop_token_ids" in refused.message


@torch.inference_mode()
def test_a_prompt_whose_logits_are_nan_fails_by_itself(engine):
    engine.model.embed_tokens.weight[engine.tokenizer.encode("~")] = float("nan")
    requests = [Request(str(n), text, sampling=SamplingParams(max_new_tokens=3)) for n, text in enumerate(["a", "~"])]
    results = {result.id: result for result in engine.generate(requests)}
    assert isinstance(results["0"], Completion)
    assert results["1"] == RequestFailure("1", "model", results["1"].message)
    assert "highest logit is nan" in results["1"].message


def test_samples_are_what_requests_with_the_seeds_that_follow_get(engine):
    params = {"temperature": 1.5, "stop": "\n"}
    choices = ask(engine, n=3, seed=7, **params).choices
    assert [choice.index for choice in choices] == [0, 1, 2]
    alone = [ask(engine, seed=7 + index, **params) for index in range(3)]
    assert [(choice.text, choice.token_ids) for choice in choices] == [
        (result.text, result.token_ids) for result in alone
    ]
    assert len({choice.token_ids for choice in choices}) == 3

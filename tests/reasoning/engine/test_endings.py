"""How samples end: by which token, with which text, in one piece and streamed, with and without drafts."""

from __future__ import annotations

import dataclasses

import pytest
import tokenizers
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models

from reasoning.checkpoint.load import load_model
from reasoning.engine import Engine
from reasoning.engine.config import EngineConfig
from reasoning.request import Completion, Delta, Request, SamplingParams
from reasoning.text.tokenizer import Tokenizer
from tests.reasoning.conftest import byte_tokenizer
from tests.reasoning.text.test_text_stream import ends_first

PROMPT = (5, 80, 200)
LENGTH = 24
DRAWN = {"temperature": 2.0, "seed": 8}
"""Greedy, so small a model repeats itself."""


def pieces() -> tokenizers.Tokenizer:
    """Ids as pieces of text: bytes, words with a space in front, and parts of words, one of them a special token."""
    names = [
        *(f"<0x{byte:02X}>" for byte in range(0x20, 0x60)),
        *(f"▁w{n}" for n in range(100)),
        *(f"p{n}" for n in range(92)),
    ]
    backend = tokenizers.Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, [], byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    backend.add_special_tokens(["<end>"])
    return backend


@pytest.fixture(scope="module")
def model(plain_dir):
    return load_model(plain_dir)


@pytest.fixture(scope="module")
def whole(model):
    """What the model says when nothing ends it."""
    params = SamplingParams(max_new_tokens=LENGTH, ignore_eos=True, **DRAWN)
    (result,) = Engine(model).generate([Request("0", prompt_token_ids=PROMPT, sampling=params)])
    assert len(set(result.token_ids[:16])) == 16
    return result.token_ids


@pytest.fixture(scope="module", params=["bytes", "pieces"])
def tokenizer(request, whole):
    """A tokenizer that knows two of the tokens that the model says as special."""
    backend = byte_tokenizer() if request.param == "bytes" else pieces()
    backend.add_special_tokens([backend.id_to_token(token_id) for token_id in (whole[6], whole[15])])
    return Tokenizer(backend)


def engine_of(model, tokenizer, whole, drafts):
    """An engine whose drafts, if wanted, are right, so that several tokens are found in a step."""
    engine = Engine(model, tokenizer, config=EngineConfig(drafts="none", max_batch=4))
    if drafts:

        def script(sequence):
            count = len(sequence.new_tokens)
            return list(whole[count : count + 4])[: max(0, sequence.limit - len(sequence.token_ids) - 1)]

        engine.scheduler._draft = script
    return engine


def run(engine, sampling, stream):
    """The choices of one request, after comparing them with what was streamed."""
    request = Request("0", prompt_token_ids=PROMPT, sampling=sampling, stream=stream)
    *deltas, result = engine.events([request])
    engine.check_integrity()
    assert engine.idle
    if not isinstance(result, Completion):
        assert not deltas
        return result
    for choice in result.choices:
        mine = [delta for delta in deltas if isinstance(delta, Delta) and delta.index == choice.index]
        assert bool(mine) == stream
        if stream:
            assert "".join(delta.text for delta in mine) == choice.text
            assert sum((delta.token_ids for delta in mine), ()) == choice.token_ids
        if sampling.logprobs is None:
            assert choice.logprobs is None
        else:
            assert [entry.token_id for entry in choice.logprobs] == list(choice.token_ids)
            assert not stream or sum((delta.logprobs for delta in mine), ()) == choice.logprobs
    return result


def expected(tokenizer, whole, sampling, eos):
    """Tokens, text and reason, worked out from the tokens that come when nothing ends them."""
    ends = {*sampling.stop_token_ids, *(() if sampling.ignore_eos else eos)}
    ends |= {tokenizer.special_tokens[text] for text in sampling.stop if text in tokenizer.special_tokens}
    include, skip = sampling.include_stop_str_in_output, sampling.skip_special_tokens
    for count in range(1, sampling.max_new_tokens + 1):
        tokens, ended = whole[:count], whole[count - 1] in ends
        shown = tokens[:-1] if ended and not include else tokens
        text, found = ends_first(tokenizer.decode(shown, skip), sampling.stop, include)
        if ended or found:
            return tokens, text, "stop"
    return tokens, text, "length"


@st.composite
def samplings(draw, tokenizer, whole):
    skip = draw(st.booleans())
    text = tokenizer.decode(whole, skip)
    spans = st.tuples(st.integers(0, len(text) - 1), st.integers(1, 5)).map(lambda span: text[span[0] : sum(span)])
    stop = draw(st.lists(spans | st.sampled_from([*tokenizer.special_tokens, "never"]), max_size=3))
    return SamplingParams(
        max_new_tokens=draw(st.integers(1, LENGTH)),
        stop=[text for text in stop if "�" not in text],
        stop_token_ids=draw(st.lists(st.sampled_from(whole) | st.integers(0, 255), max_size=2)),
        include_stop_str_in_output=draw(st.booleans()),
        skip_special_tokens=skip,
        ignore_eos=draw(st.booleans()),
        logprobs=draw(st.sampled_from([None, 0, 2])),
        **DRAWN,
    )


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), drafts=st.booleans(), stream=st.booleans())
def test_samples_end_where_their_first_end_is_however_they_are_made(model, tokenizer, whole, data, drafts, stream):
    sampling = data.draw(samplings(tokenizer, whole))
    eos = tuple(data.draw(st.lists(st.sampled_from(whole), max_size=1)))
    model.config = dataclasses.replace(model.config, eos_token_id=eos)
    result = run(engine_of(model, tokenizer, whole, drafts), sampling, stream)
    assume(isinstance(result, Completion))  # a stop text with a special token and more in it is refused
    (choice,) = result.choices
    assert (choice.token_ids, choice.text, choice.finish_reason) == expected(tokenizer, whole, sampling, eos)


@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_a_special_stop_text_ends_a_sample_as_its_id_does(model, tokenizer, whole, include, stream):
    special = tokenizer.id_to_token(whole[6])
    common = {"max_new_tokens": LENGTH, "ignore_eos": True, "include_stop_str_in_output": include, **DRAWN}
    engine = engine_of(model, tokenizer, whole, drafts=False)
    by_id = run(engine, SamplingParams(stop_token_ids=[whole[6]], **common), stream)
    assert by_id.token_ids == whole[:7]
    for stop in ([special], ["never comes", special], [special, "never comes"]):
        assert run(engine, SamplingParams(stop=stop, **common), stream) == by_id


def test_the_text_of_a_stop_token_is_kept_on_request(model, tokenizer, whole):
    engine = engine_of(model, tokenizer, whole, drafts=False)
    common = {"max_new_tokens": LENGTH, "ignore_eos": True, "stop_token_ids": [whole[4]], **DRAWN}
    cut, kept = (
        run(engine, SamplingParams(**common, include_stop_str_in_output=include), False) for include in (False, True)
    )
    assert cut.token_ids == kept.token_ids == whole[:5]
    assert (cut.text, kept.text) == (tokenizer.decode(whole[:4]), tokenizer.decode(whole[:5]))


def test_every_sample_has_its_own_stop_text(model, tokenizer):
    params = {"max_new_tokens": 12, "n": 4, "temperature": 2.0, "seed": 3, "ignore_eos": True, "logprobs": 1}
    free = run(engine_of(model, tokenizer, (), drafts=False), SamplingParams(**params), True)
    stop = next(character for character in free.choices[2].text[1:] if character != "�")
    ended = run(engine_of(model, tokenizer, (), drafts=False), SamplingParams(stop=stop, **params), True)
    for before, after in zip(free.choices, ended.choices, strict=True):
        assert (after.text, after.finish_reason == "stop") == ends_first(before.text, [stop])
        assert after.token_ids == before.token_ids[: len(after.token_ids)]
    assert len(ended.choices[2].token_ids) < 12


def test_tokens_after_a_stop_in_accepted_drafts_do_not_count(model, tokenizer, whole):
    engine = engine_of(model, tokenizer, whole, drafts=True)
    sampling = SamplingParams(max_new_tokens=LENGTH, stop_token_ids=[whole[2]], ignore_eos=True, **DRAWN)
    result = run(engine, sampling, False)
    assert result.token_ids == whole[:3]
    stats = engine.stats()
    assert (stats.output_tokens, stats.steps) == (3, 2)  # the second step found five tokens

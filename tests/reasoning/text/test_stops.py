"""Which tokens end a sample, and which stop texts are refused because they could not be found."""

from __future__ import annotations

import pytest

from reasoning.request import RequestError, SamplingParams
from reasoning.text.stops import check_stops, end_tokens
from reasoning.text.tokenizer import Tokenizer
from tests.reasoning.conftest import END, byte_tokenizer


@pytest.fixture
def tokenizer() -> Tokenizer:
    """Bytes, the special tokens <end> and <turn>, and <plain>, which is none."""
    backend = byte_tokenizer("<plain>")
    backend.add_special_tokens(["<turn>"])
    return Tokenizer(backend)


@pytest.mark.parametrize(
    ("sampling", "ends"),
    [
        ({}, {1, 2}),
        ({"ignore_eos": True}, set()),
        ({"stop_token_ids": [2, 7]}, {1, 2, 7}),
        ({"stop_token_ids": [2, 7], "ignore_eos": True}, {2, 7}),
        ({"stop": ["<end>", "x", "<plain>"]}, {1, 2, END}),
        ({"stop": "<turn>", "ignore_eos": True}, {258}),
        ({"stop": ["<end>", "<turn>"], "stop_token_ids": [7], "ignore_eos": True}, {END, 258, 7}),
    ],
    ids=str,
)
def test_a_sample_ends_at_stop_tokens_special_stop_texts_and_end_of_text(tokenizer, sampling, ends):
    params = SamplingParams(**sampling)
    check_stops(params, tokenizer)
    assert end_tokens(params, tokenizer, (1, 2)) == ends


def test_without_a_tokenizer_only_token_ids_end_a_sample():
    assert end_tokens(SamplingParams(stop_token_ids=[5]), None, (1,)) == {1, 5}
    with pytest.raises(RequestError, match=r"stop: this model has no tokenizer\.json .*use stop_token_ids"):
        check_stops(SamplingParams(stop="x"), None)


@pytest.mark.parametrize("stop", ["<end>\n", "x<end>", "<end><end>", "<turn><end>", " <turn>"])
def test_a_stop_text_with_a_special_token_in_it_is_refused_with_advice(tokenizer, stop):
    with pytest.raises(RequestError) as refusal:
        check_stops(SamplingParams(stop=["fine", stop]), tokenizer)
    assert refusal.value.field == "stop"
    inside = "<turn>" if "<turn>" in stop else "<end>"
    assert f"{stop!r} contains the special token {inside!r}" in refusal.value.message
    assert f"use {inside!r} alone, or set skip_special_tokens to false" in refusal.value.message
    check_stops(SamplingParams(stop=stop, skip_special_tokens=False), tokenizer)  # its text is in the output


@pytest.mark.parametrize("stop", ["<en", "end>", "<plain>", "x<plain>", "\x00", "�"])
def test_other_stop_texts_are_accepted(tokenizer, stop):
    check_stops(SamplingParams(stop=stop), tokenizer)

from __future__ import annotations

import pytest

from reasoning.request import Request, RequestError
from reasoning.text.prompt_limits import PromptLimits
from reasoning.text.prompts import PromptReader
from reasoning.text.tokenizer import Tokenizer
from tests.reasoning.conftest import byte_tokenizer

LIMITS = PromptLimits(context=100, token_bytes=8)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request("1", "x" * 800), "prompt: at least 100 tokens leave no room in a context of 100; shorten the prompt"),
        (Request("1", "\u4e2d" * 300), "prompt: at least 113 tokens"),
        (Request("1", "\ud800" * 300), "prompt: at least 113 tokens"),
        (Request("1", prompt_token_ids=(1,) * 100), "prompt_token_ids: 100 tokens leave no room"),
        (Request("1", prompt_token_ids=["x"] * 100), "prompt_token_ids: 100 tokens leave no room"),
    ],
)
def test_a_prompt_that_cannot_fit_is_refused_by_its_measure(request_, message):
    with pytest.raises(RequestError, match=message):
        LIMITS.check(request_)


@pytest.mark.parametrize(
    "request_", [Request("1", "x" * 799), Request("1", prompt_token_ids=(1,) * 99), Request("1"), Request("1", 5)]
)
def test_what_may_fit_or_is_no_prompt_at_all_is_left_to_others(request_):
    LIMITS.check(request_)


def test_without_a_bound_any_text_may_fit():
    PromptLimits(100).check(Request("1", "x" * 10_000))
    assert PromptLimits(100).text_bytes is None
    assert LIMITS.text_bytes == 800


def test_a_text_that_cannot_fit_is_not_tokenized(monkeypatch, tmp_path):
    byte_tokenizer().save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_file(tmp_path)
    reader = PromptReader(tokenizer, 257, 100)
    monkeypatch.setattr(tokenizer, "encode", lambda text: pytest.fail("was tokenized"))
    with pytest.raises(RequestError, match="prompt: at least 10000 tokens leave no room in a context of 100"):
        reader.read(Request("1", "x" * 50_000))

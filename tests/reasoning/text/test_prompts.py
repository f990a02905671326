"""Prompts as the model gets them: special tokens around texts, ids as they are, and what is refused."""

from __future__ import annotations

import pytest
from tokenizers import processors

from reasoning.request import Request, RequestError
from reasoning.text.prompts import PromptReader
from reasoning.text.tokenizer import Tokenizer
from tests.reasoning.conftest import END, byte_tokenizer


@pytest.fixture
def tokenizer() -> Tokenizer:
    """A tokenizer that puts `<end>` before a text, as GPT-2 has one token for both ends."""
    backend = byte_tokenizer()
    backend.post_processor = processors.TemplateProcessing(single="<end> $A", special_tokens=[("<end>", END)])
    return Tokenizer(backend)


@pytest.fixture
def prompts(tokenizer: Tokenizer) -> PromptReader:
    return PromptReader(tokenizer, 257, 64)


@pytest.mark.parametrize("text", ["hi", "\x00", " a\x00\n", "é😀", "<end>x", ""])
def test_a_text_begins_with_the_beginning_of_sequence_token_once(
    prompts: PromptReader, tokenizer: Tokenizer, text: str
) -> None:
    assert prompts.read(Request("0", text)) == [END, *tokenizer.encode(text.removeprefix("<end>"))]


@pytest.mark.parametrize("ids", [(5,), (END, 5), (END, END, 5)])
def test_token_ids_are_taken_as_they_are(prompts: PromptReader, ids: tuple[int, ...]) -> None:
    assert prompts.read(Request("0", prompt_token_ids=ids)) == list(ids)


def test_added_tokens_count_towards_the_context(prompts: PromptReader) -> None:
    assert len(prompts.read(Request("0", "x" * 62))) == 63
    with pytest.raises(RequestError, match="prompt: 64 tokens leave no room in a context of 64"):
        prompts.read(Request("0", "x" * 63))

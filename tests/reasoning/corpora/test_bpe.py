"""The tokenizer gives back every text, and special tokens are found in vocabularies of several families."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer as BpeTokenizer
from tokenizers import models

from reasoning.corpora.bpe import SPECIAL_TOKENS, Marks, train_bpe

from .material import code, small_bpe

ODD_TEXTS = [
    "",
    " ",
    "\t\tx = 1  \r\n    y\n\n\n\tz\r",
    "def f(a: int) -> str:\n    return f'{a:>10}'  # comment\n",
    "x" * 100 + "1234567890" * 3 + "____" + "=" * 20,
    "naïve café 秦始皇 😀 \u0301\u200d\ufeff \u2028\x85",
    "\x00\x0b\x0c\x1f\x7f",
    "a  b   c \n  \n",
    "0x1F 1e-9 1_000 …—“”",
]


@pytest.mark.parametrize("text", ODD_TEXTS, ids=range(len(ODD_TEXTS)))
def test_the_tokenizer_gives_back_every_text(text):
    ids = small_bpe().encode(text, add_special_tokens=False).ids
    assert small_bpe().decode(ids, skip_special_tokens=False) == text


def test_special_tokens_come_first_and_the_vocabulary_has_the_size_asked_for():
    assert [small_bpe().token_to_id(token) for token in SPECIAL_TOKENS] == list(range(6))
    assert SPECIAL_TOKENS[:2] == ("<|endoftext|>", "<|pad|>")
    assert small_bpe().get_vocab_size() == 400
    assert Marks.find(small_bpe()) == Marks(end=0, pad=1, prefix=2, suffix=3, middle=4, file=5)


def test_the_same_texts_give_the_same_tokenizer():
    texts = [code(str(number)) for number in range(20)]
    assert train_bpe(texts, 400).to_str() == small_bpe().to_str()


def vocabulary(*tokens):
    return BpeTokenizer(models.WordLevel({token: place for place, token in enumerate(tokens)}, unk_token=tokens[0]))


def test_the_marks_of_other_families_are_found():
    deepseek = vocabulary("<｜end▁of▁sentence｜>", "<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>")
    assert Marks.find(deepseek) == Marks(end=0, pad=0, prefix=1, suffix=2, middle=3, file=None)
    starcoder = vocabulary("<|endoftext|>", "<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>", "<file_sep>")
    assert Marks.find(starcoder) == Marks(end=0, pad=4, prefix=1, suffix=3, middle=2, file=5)
    assert Marks.find(starcoder).fill_in_the_middle


def test_a_vocabulary_that_cannot_end_a_text_is_refused():
    with pytest.raises(ValueError, match=r"tokenizer: it has none of <\|endoftext\|>, .* to begin documents"):
        Marks.find(vocabulary("a", "b"))
    assert not Marks.find(vocabulary("</s>", "<fim_prefix>")).fill_in_the_middle

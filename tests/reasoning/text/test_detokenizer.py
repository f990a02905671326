"""Tokens become the text that they decode to at once, whatever they are and wherever they end."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasoning.text.detokenizer import detokenizer
from reasoning.text.tokenizer import Tokenizer
from tests.reasoning.text.vocabularies import ALL, BYTES, END, PIECES, spell


def pieces_of(tokenizer: Tokenizer, ids: list[int], skip: bool = True) -> list[str]:
    """What each token made final, and the end."""
    made = detokenizer(tokenizer, skip)
    return [*map(made.feed, ids), made.finish()]


def check_every_prefix(tokenizer: Tokenizer, ids: list[int], skip: bool = True) -> None:
    """Compare what has been returned, and what an end would return, with the text of the same tokens at once."""
    for length in range(len(ids) + 1):
        assert "".join(pieces_of(tokenizer, ids[:length], skip)) == tokenizer.decode(ids[:length], skip), ids[:length]


def near(tokenizer: Tokenizer) -> st.SearchStrategy[int]:
    """Token ids, gaps and ids beyond the vocabulary included, often those of bytes that matter to UTF-8."""
    telling = [
        0x20,
        0x41,
        0x7F,
        0x80,
        0x9F,
        0xA0,
        0xBF,
        0xC1,
        0xC2,
        0xE0,
        0xE2,
        0xED,
        0xEF,
        0xF0,
        0xF4,
        0xF5,
        0xFF,
        END,
    ]
    return st.sampled_from(telling) | st.integers(0, tokenizer.vocab_size + 3)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("skip", [True, False], ids=["skipping special tokens", "keeping special tokens"])
def test_any_tokens_make_the_text_that_they_decode_to(name, skip):
    tokenizer = ALL[name]

    @settings(deadline=None, max_examples=60)  # a busy machine is no failure
    @given(st.lists(near(tokenizer), max_size=14))
    def check(ids):
        check_every_prefix(tokenizer, ids, skip)

    check()


def test_any_tokens_of_deepseek_make_the_text_that_they_decode_to(deepseek_tokenizer):
    partial = [token for token in range(20_000) if "�" in deepseek_tokenizer.decode([token])]

    @settings(deadline=None, max_examples=60)
    @given(st.lists(st.sampled_from(partial) | st.integers(0, deepseek_tokenizer.vocab_size), max_size=14))
    def check(ids):
        check_every_prefix(deepseek_tokenizer, ids)

    check()


@settings(deadline=None)
@given(st.lists(st.sampled_from(["▁Hello", "▁world", "s", "▁", "é", "😀", "x", "\n", "�"]), max_size=20))
def test_pieces_and_their_byte_fallback_make_the_text_that_they_decode_to(pieces):
    check_every_prefix(PIECES, spell(PIECES, pieces))


@pytest.mark.parametrize("tokenizer", [BYTES, PIECES], ids=["bytes", "pieces"])
@pytest.mark.parametrize("stray", range(20))
@pytest.mark.parametrize("end", ["", "s"])
def test_stray_bytes_before_a_character_do_not_cost_it(tokenizer, stray, end):
    ids = [0x80] * stray + spell(tokenizer, ["😀", *end])
    check_every_prefix(tokenizer, ids)
    assert tokenizer is PIECES or "".join(pieces_of(tokenizer, ids)) == "�" * stray + "😀" + end


@pytest.mark.parametrize("word", [[0xE2, 0x82], [0x82, 0xE2], [0x80], [0xFF], [0xF0, 0x9F, 0x98], [0x41]], ids=bytes)
@pytest.mark.parametrize("tokenizer", [BYTES, PIECES], ids=["bytes", "pieces"])
def test_a_token_costs_the_same_however_long_the_text(tokenizer, word):
    decoded = []

    class Spy(Tokenizer):
        def decode(self, ids, skip_special_tokens=True):
            decoded.append(len(ids))
            return super().decode(ids, skip_special_tokens)

    ids = word * 1000
    assert "".join(pieces_of(Spy(tokenizer.backend), ids)) == tokenizer.decode(ids)
    assert sum(decoded) <= 2 * len(ids)
    assert tokenizer is PIECES or not decoded


def test_pieces_are_decoded_two_at_a_time_after_a_run_of_bytes():
    decoded = []

    class Spy(Tokenizer):
        def decode(self, ids, skip_special_tokens=True):
            decoded.append(len(ids))
            return super().decode(ids, skip_special_tokens)

    ids = [0x41] * 500 + spell(PIECES, ["▁world", "s", "▁�"]) * 200
    assert "".join(pieces_of(Spy(PIECES.backend), ids)) == PIECES.decode(ids)
    assert sorted(decoded)[-2] == 2


def test_byte_tokens_wait_until_their_run_ends_and_are_open_while_they_are_characters():
    made = detokenizer(PIECES)
    steps = [(made.feed(token_id), made.open) for token_id in spell(PIECES, ["▁Hello", "x", "😀", "▁world"])]
    assert steps == [("Hello", ""), ("", "x"), ("", "x"), ("", "x"), ("", "x"), ("", "x😀"), ("x😀 world", "")]
    broken = [(made.feed(token_id), made.open) for token_id in [0x61, 0x80, 0x62, *spell(PIECES, ["s"])]]
    assert broken == [("", "a"), ("", ""), ("", ""), ("���s", "")]


def test_open_text_lacks_the_space_that_a_decoder_removes_at_the_beginning():
    made = detokenizer(PIECES)
    assert [(made.feed(token_id), made.open) for token_id in b"  a"] == [("", ""), ("", " "), ("", " a")]
    assert made.finish() == PIECES.decode(list(b"  a")) == " a"

"""Text as tokens arrive: whatever the tokens, the pieces make up the whole text, and end at a stop text."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasoning.text.text_stream import TextStream
from tests.reasoning.text.vocabularies import BYTES, END, PIECES, spell


def pieces_of(tokenizer, ids, stop=(), include=False):
    """What each token made final, and what the end did; feeding ends with a stop text."""
    stream, pieces = TextStream(tokenizer, stop, include), []
    for token_id in ids:
        pieces.append(stream.feed(token_id))
        if stream.stopped:
            break
    return [*pieces, stream.finish()], stream.stopped


def text_of(tokenizer, ids, stop=()):
    return "".join(pieces_of(tokenizer, ids, stop)[0])


@settings(deadline=None)  # a busy machine is no failure
@given(st.text(max_size=30))
def test_any_text_comes_back_from_its_bytes(text):
    assert text_of(BYTES, text.encode()) == text


def test_a_character_comes_when_its_last_byte_does_and_nothing_before_it_waits():
    assert pieces_of(BYTES, "a😀b".encode())[0] == ["a", "", "", "", "😀", "b", ""]


def test_a_character_that_stays_incomplete_is_marked_at_the_end():
    assert pieces_of(BYTES, "a😀".encode()[:-1])[0] == ["a", "", "", "", "�"]


def test_bytes_that_make_no_character_do_not_hold_the_text_back():
    pieces, _ = pieces_of(BYTES, [0xFF] * 100 + [0x61])
    assert "".join(pieces) == "�" * 100 + "a"
    assert len("".join(pieces[:50])) > 50 - 16


def test_special_tokens_have_no_text_and_are_free():
    stream = TextStream(BYTES)
    assert [stream.feed(token_id) for token_id in [0xC3, END, 0xA9, END]] == ["", "", "é", ""]


def test_special_tokens_that_are_not_skipped_are_text():
    stream = TextStream(BYTES, ["d>!"], skip_special_tokens=False)
    assert [stream.feed(token_id) for token_id in [0xC3, END, 0x61]] == ["", "�<en", "d>a"]
    assert (stream.feed(END), stream.feed(0x21), stream.stopped) == ("<en", "", True)


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one two", ["two"], "one "),
        ("one two", ["one"], ""),
        ("one two", ["o"], ""),
        ("one two", ["three"], None),
        ("one tw", ["two"], None),
        ("aaab", ["aab"], "a"),
        ("xabc", ["abcd", "bc"], "xa"),  # "bc" is there first
        ("xabcd", ["abcd", "bcd"], "x"),  # both end at once: the longer one
        ("xabc", ["abc", "ab"], "x"),
        ("xabd", ["abc", "bd"], "xa"),
        ("a\n\nb", ["\n\n"], "a"),
        ("tschüß", ["üß"], "tsch"),
        ("go😀on", ["😀"], "go"),
        ("go😁on", ["😀"], None),
        ("a b a c", ["a c", "a d"], "a b "),
    ],
)
def test_the_text_ends_before_a_stop_text(text, stop, expected):
    pieces, stopped = pieces_of(BYTES, text.encode(), stop)
    assert stopped == (expected is not None)
    assert "".join(pieces) == (text if expected is None else expected)


def test_what_may_become_a_stop_text_is_held_until_it_cannot():
    assert pieces_of(BYTES, b"xab_abc", ["abc"])[0] == ["x", "", "", "ab_", "", "", "", ""]
    assert pieces_of(BYTES, b"xab", ["abc"])[0] == ["x", "", "", "ab"]


def test_a_token_after_the_stop_text_is_a_mistake_of_the_caller():
    stream = TextStream(BYTES, ["a"])
    assert (stream.feed(0x61), stream.stopped, stream.finish()) == ("", True, "")
    with pytest.raises(AssertionError, match="after a stop text"):
        stream.feed(0x62)


def ends_first(text, stops, include=False):
    """Where the text ends: at the stop text that is complete first, found by trying every prefix."""
    for end in range(1, len(text) + 1):
        if starts := [end - len(stop) for stop in stops if text[:end].endswith(stop)]:
            return text[: end if include else min(starts)], True
    return text, False


STOPS = st.lists(st.text("ab é\nth�", min_size=1, max_size=4), max_size=4)


@settings(deadline=None)  # a busy machine is no failure
@given(
    st.lists(st.sampled_from([*b"ab \n", *"é".encode(), 256, 257, 258, 0xFF, END]), max_size=15), STOPS, st.booleans()
)
def test_however_the_text_is_cut_into_tokens_it_ends_where_the_first_stop_text_is_complete(ids, stops, include):
    pieces, stopped = pieces_of(BYTES, ids, stops, include)
    assert ("".join(pieces), stopped) == ends_first(BYTES.decode(ids), stops, include)


@settings(deadline=None)
@given(st.lists(st.sampled_from([*b"ab \n", *"é".encode(), *range(257, 264), 0xFF]), max_size=12), STOPS, st.booleans())
def test_pieces_end_at_the_first_stop_text_of_what_they_decode_to_so_far(ids, stops, include):
    """Bytes count as soon as they are characters: a stop text ends the sample, so no byte follows to spoil them."""
    pieces, stopped = pieces_of(PIECES, ids, stops, include)
    expected = PIECES.decode(ids), False
    for length in range(1, len(ids) + 1):
        shown = [token_id for token_id in ids[:length] if token_id != END]
        run = list(itertools.takewhile(lambda token_id: token_id < 256, reversed(shown)))
        text, cut = PIECES.decode(ids[:length]), ends_first(PIECES.decode(ids[:length]), stops, include)
        spoilt = "�" in PIECES.decode([257, *reversed(run)])  # invalid, or not a whole character yet
        if spoilt and length < len(ids):
            cut = ends_first(text[: len(text) - len(run)], stops, include)
        if cut[1]:
            expected = cut
            break
    assert ("".join(pieces), stopped) == expected


def test_a_line_break_in_a_byte_token_stops_at_once():
    assert pieces_of(PIECES, spell(PIECES, ["▁Hello", "\n"]), ["\n"]) == (["Hello", "", ""], True)
    assert pieces_of(PIECES, spell(PIECES, ["▁Hello", "x\n"]), ["\n"]) == (["Hello", "", "x", ""], True)


@pytest.mark.parametrize("text", ["one two", "one twotwo", "aaab", "xabcd", "go😀on"])
def test_a_stop_text_that_is_included_holds_nothing_back(text):
    pieces, stopped = pieces_of(BYTES, text.encode(), ["two", "aab", "bcd", "😀"], include=True)
    assert stopped
    assert pieces[:-1] == pieces_of(BYTES, "".join(pieces).encode())[0][:-1]
    assert "".join(pieces).endswith(("two", "aab", "bcd", "😀"))

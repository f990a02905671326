"""Text as tokens arrive: whatever the tokens, the pieces make up the whole text, and end before a stop text."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from reasoning.text.text_stream import TextStream
from reasoning.text.tokenizer import Tokenizer

TINY_CODE = Tokenizer.from_file(Path(__file__).parents[3] / "models" / "tiny-code")
END = 260


def byte_level():
    """One token a byte, by its value; two words, and a special token `END`."""
    table = pre_tokenizers.ByteLevel.alphabet()
    names = [_byte_name(byte) for byte in range(256)]
    assert sorted(names) == sorted(table)
    vocabulary = {name: byte for byte, name in enumerate(names)} | {"ab": 256, "Ġthe": 257, "Ã©a": 258}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens(["<plain>"])
    backend.add_special_tokens(["<end>"])
    assert backend.token_to_id("<end>") == END
    return Tokenizer(backend)


def _byte_name(byte):
    """The character that stands for a byte: itself where it can be seen, else one of U+0100 and up, in order."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return chr(byte) if byte in seen else chr(0x100 + sum(other not in seen for other in range(byte)))


def byte_fallback():
    """A vocabulary as SentencePiece makes it: ▁ for spaces, bytes as <0x41>."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁Hello", "▁world", "s", "▁"]
    backend = tokenizers.Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    return Tokenizer(backend)


BYTES = byte_level()
PIECES = byte_fallback()


def pieces_of(tokenizer, ids, stop=()):
    """What each token made final, and what the end did; feeding ends with a stop text."""
    stream, pieces = TextStream(tokenizer, stop), []
    for token_id in ids:
        pieces.append(stream.feed(token_id))
        if stream.stopped:
            break
    return [*pieces, stream.finish()], stream.stopped


def text_of(tokenizer, ids, stop=()):
    return "".join(pieces_of(tokenizer, ids, stop)[0])


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(st.integers(0, END), max_size=15))
def test_any_tokens_of_a_byte_level_vocabulary_make_the_text_they_decode_to(ids):
    assert text_of(BYTES, ids) == BYTES.decode(ids)


@settings(deadline=None)  # a busy machine is no failure
@given(st.text(max_size=30))
def test_any_text_comes_back_from_its_bytes(text):
    assert text_of(BYTES, text.encode()) == text


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(st.integers(0, TINY_CODE.vocab_size - 1), max_size=15))
def test_any_tokens_of_the_shipped_model_make_the_text_they_decode_to(ids):
    assert text_of(TINY_CODE, ids) == TINY_CODE.decode(ids)


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(st.sampled_from(["▁Hello", "▁world", "s", "▁", "é", "😀", "x"]), max_size=20))
def test_sentence_pieces_and_their_byte_fallback_make_the_text_they_decode_to(pieces):
    ids = []
    for piece in pieces:
        known = PIECES.token_id(piece)
        ids += [known] if known is not None else [PIECES.token_id(f"<0x{byte:02X}>") for byte in piece.encode()]
    assert text_of(PIECES, ids) == PIECES.decode(ids)


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


@pytest.mark.parametrize("ids", [[*b"word "] * 400, [END] * 2000, [0xFF] * 2000, [0x61] * 2000], ids=lambda ids: ids[0])
def test_a_long_text_is_decoded_a_few_tokens_at_a_time(ids):
    decoded = []

    class Spy(Tokenizer):
        def decode(self, ids, skip_special_tokens=True):
            decoded.append(len(ids))
            return super().decode(ids, skip_special_tokens)

    flat = [token_id for entry in ids for token_id in (entry if isinstance(entry, list) else [entry])]
    assert text_of(Spy(BYTES.backend), flat) == BYTES.decode(flat)
    assert max(decoded, default=0) < 40
    assert sum(decoded) < 40 * len(flat)


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


def ends_first(text, stops):
    """Where the text ends: before the stop text that is complete first, found by trying every prefix."""
    for end in range(1, len(text) + 1):
        if starts := [end - len(stop) for stop in stops if text[:end].endswith(stop)]:
            return text[: min(starts)], True
    return text, False


@settings(deadline=None)  # a busy machine is no failure
@given(
    st.lists(st.sampled_from([*b"ab \n", *"é".encode(), 256, 257, 258, 0xFF, END]), max_size=15),
    st.lists(st.text("ab é\nth�", min_size=1, max_size=4), max_size=4),
)
def test_however_the_text_is_cut_into_tokens_it_ends_where_the_first_stop_text_is_complete(ids, stops):
    pieces, _ = pieces_of(BYTES, ids, stops)
    expected, _ = ends_first(BYTES.decode(ids), stops)
    assert "".join(pieces) == expected

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.models import BPE

from reasoning.text.longest_token import longest_token

BYTES = {f"<0x{byte:02X}>": byte for byte in range(256)}


def byte_level(*merges, normalizer=None, split=None, added=()):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*alphabet, *("".join(pair) for pair in merges)])}
    backend = Tokenizer(BPE(vocabulary, list(merges)))
    steps = [split] if split else []
    backend.pre_tokenizer = pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    backend.decoder = decoders.ByteLevel()
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.add_tokens(list(added))
    return backend


def byte_fallback(vocabulary=(), normalizer=None):
    own = {token: 256 + number for number, token in enumerate(["\u2581", "a", "\u2581a", *vocabulary])}
    backend = Tokenizer(BPE({**BYTES, **own}, [("\u2581", "a")], byte_fallback=True, unk_token="<0x00>"))
    backend.normalizer = normalizer or normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    return backend


MERGES = [("a", "b"), ("ab", "ab"), ("\u0120", "\u0120"), ("\u0120\u0120", "\u0120\u0120")]
NFC = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
BOUNDED = {
    "byte level": byte_level(*MERGES),
    "split first": byte_level(*MERGES, split=pre_tokenizers.Split(Regex(r"\s+|\w+"), "isolated")),
    "composed": byte_level(*MERGES, normalizer=normalizers.NFC()),
    "composed and small": byte_level(*MERGES, normalizer=NFC),
    "compatible": byte_level(*MERGES, normalizer=normalizers.NFKD()),
    "added tokens": byte_level(added=["<|a longer one than all the others|>", AddedToken("b b b", normalized=True)]),
    "byte fallback": byte_fallback(),
}
texts = (
    st.text() | st.text(st.sampled_from("ab \u2581\u212a\u1d16\u0301\U0001d15e\ufb01")) | st.text("ab ", max_size=200)
)


@given(text=texts)
@pytest.mark.parametrize("backend", BOUNDED.values(), ids=BOUNDED)
def test_no_text_has_fewer_tokens_than_the_bound_says(backend, text):
    bound = longest_token(backend)
    assert bound is not None
    assert len(text.encode()) <= bound * len(backend.encode(text).ids)


def test_the_bound_is_the_longest_token_where_text_is_taken_as_it_is():
    assert longest_token(BOUNDED["byte level"]) == 4
    assert longest_token(BOUNDED["added tokens"]) == len("<|a longer one than all the others|>")
    assert longest_token(byte_fallback(["\u4e2d\u4e2d\u4e2d"])) == 9


@pytest.mark.parametrize(
    "backend",
    [
        byte_level(normalizer=normalizers.Strip()),
        byte_level(normalizer=normalizers.Sequence([normalizers.NFC(), normalizers.StripAccents()])),
        byte_level(normalizer=normalizers.Replace(Regex(" +"), " ")),
        byte_level(normalizer=normalizers.Replace("ab", "")),
        byte_level(split=pre_tokenizers.Split(" ", "removed")),
        byte_level(split=pre_tokenizers.Whitespace()),
        byte_level(added=[AddedToken("<x>", lstrip=True)]),
        Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")),
        Tokenizer(BPE({"a": 0}, [])),
        Tokenizer(BPE({"a": 0, "<0x00>": 1}, [], byte_fallback=True)),
        Tokenizer(models.Unigram([("a", 0.0), ("<unk>", 0.0)], 1)),
    ],
)
def test_where_text_may_vanish_there_is_no_bound(backend):
    assert longest_token(backend) is None

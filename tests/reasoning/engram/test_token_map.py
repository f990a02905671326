from __future__ import annotations

import re
import unicodedata

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from reasoning.engram.token_map import TokenMap
from reasoning.text.tokenizer import Tokenizer


def map_of(tokens: list[str]) -> list[int]:
    """Compressed ids of a vocabulary whose token strings are also their texts."""
    vocab = {token: i for i, token in enumerate(tokens)}
    assert len(vocab) == len(tokens)
    backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token=tokens[0]))
    backend.decoder = decoders.Fuse()
    return TokenMap.build(Tokenizer(backend)).ids.tolist()


def reference_key(text: str) -> str:
    """Contract section 1, in the standard library's words."""
    decomposed = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", text))
    bare = "".join(c for c in decomposed if unicodedata.category(c) != "Mn").lower()
    spaced = re.sub(r"[ \t\r\n]+", " ", bare)
    return (" " if spaced == " " else spaced.strip()) or text


@pytest.mark.parametrize(
    "alike",
    [
        ["the", "The", " THE", "the\n"],
        ["café", "Cafe", "cafe\u0301", " CAFÉ "],
        [" ", "\n", "\t \r\n", "  "],
        ["fi", "ﬁ", "ＦＩ"],
        ["a b", "a\tb", "A \n b"],
    ],
)
def test_tokens_that_normalise_alike_share_an_id(alike: list[str]) -> None:
    assert map_of(["other", *alike, "another"]) == [0, *[1] * len(alike), 2]


def test_tokens_that_differ_keep_their_own_ids_in_order() -> None:
    assert map_of(["b", "a", "ab", "a b", " ", "-", "秦", "1", "¹a"]) == [0, 1, 2, 3, 4, 5, 6, 7, 8]


def test_empty_normal_form_falls_back_to_the_raw_text() -> None:
    # Accents by themselves are stripped to nothing, yet must not merge.
    assert map_of(["a", "\u0301", "\u0300", "\u0301\u0301"]) == [0, 1, 2, 3]


def test_partial_characters_are_told_apart_by_their_vocabulary_strings() -> None:
    vocab = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = tokenizers.Tokenizer(models.BPE(vocab, []))
    backend.decoder = decoders.ByteLevel()
    token_map = TokenMap.build(Tokenizer(backend))
    partial = [vocab[c] for c in backend.get_vocab() if backend.decode([vocab[c]]) == "\ufffd"]
    assert len(partial) == 128
    assert len(set(token_map.ids[partial].tolist())) == 128
    assert token_map.ids[vocab["A"]] == token_map.ids[vocab["a"]]


def test_deepseek_map_is_the_released_one(deepseek_map: TokenMap, golden: dict) -> None:
    assert deepseek_map.vocab_size == 129_280
    assert deepseek_map.size == golden["config"]["engram_compressed_vocab_size"] == 99_092
    assert deepseek_map.sha256 == golden["token_map_sha256"]
    assert deepseek_map.ids[golden["config"]["engram_pad_token_id"]] == golden["compressed_pad_id"]


def test_deepseek_keys_agree_with_the_standard_librarys_normalisation(
    deepseek_tokenizer: Tokenizer, deepseek_map: TokenMap
) -> None:
    # Plain Latin text only: Unicode versions of Python and of the tokenizer library differ for newer scripts.
    keys: dict[str, int] = {}
    for token_id, text in enumerate(deepseek_tokenizer.decode_each(range(deepseek_map.vocab_size))):
        if text and all(c < "\u0250" for c in text):
            compressed = int(deepseek_map.ids[token_id])
            assert keys.setdefault(reference_key(text), compressed) == compressed, (token_id, text)
    assert len(keys) == len(set(keys.values())) > 30_000


def test_fingerprint_tells_maps_of_equal_size_apart() -> None:
    one, other = TokenMap(np.array([0, 1, 1, 2])), TokenMap(np.array([0, 1, 2, 2]))
    assert one.size == other.size == 3
    assert one.sha256 != other.sha256
    # printf '\0\0\0\0\1\0\0\0\1\0\0\0\2\0\0\0' | sha256sum
    assert one.sha256 == "f75a605a1fcbaea023eb618377547dbff016670bd1b0aeafce56232d837e0d71"


def test_map_cannot_be_changed_afterwards() -> None:
    source = np.array([0, 1])
    token_map = TokenMap(source)
    source[0] = 1
    assert token_map.ids.tolist() == [0, 1]
    with pytest.raises(ValueError, match="read-only"):
        token_map.ids[0] = 1


@pytest.mark.parametrize("ids", [[], [1, 2], [0, 2], [-1, 0], [[0, 1]]])
def test_ids_with_holes_are_refused(ids: list) -> None:
    with pytest.raises(ValueError, match="every compressed id from 0 up"):
        TokenMap(np.array(ids, dtype=np.int64))

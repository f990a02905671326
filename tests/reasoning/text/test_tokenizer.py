from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from reasoning.text.tokenizer import Tokenizer


def byte_level(words: list[str]) -> tokenizers.Tokenizer:
    """Every byte is a token, then `words`; `<bos>` is special and the file asks for it in front."""
    vocab = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = tokenizers.Tokenizer(models.BPE(vocab, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens(words)
    backend.add_special_tokens(["<bos>"])
    backend.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", backend.token_to_id("<bos>"))]
    )
    return backend


def test_reads_a_file_or_the_directory_that_holds_it(tmp_path: Path) -> None:
    byte_level([]).save(str(tmp_path / "tokenizer.json"))
    for path in (tmp_path, tmp_path / "tokenizer.json", str(tmp_path)):
        assert len(Tokenizer.from_file(path).encode("abc")) == 3


@pytest.mark.parametrize("text", ["def f(x):\n\treturn x", "秦始皇 Café 😀", ""])
def test_decode_gives_the_encoded_text_back(text: str) -> None:
    tokenizer = Tokenizer(byte_level(["return"]))
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_tokens_are_added_and_kept_only_on_request() -> None:
    tokenizer = Tokenizer(byte_level([]))
    bos = tokenizer.token_id("<bos>")
    plain, special = tokenizer.encode("hi"), tokenizer.encode("hi", add_special_tokens=True)
    assert special == [bos, *plain]
    assert tokenizer.decode(special) == "hi"
    assert tokenizer.decode(special, skip_special_tokens=False) == "<bos>hi"


@pytest.mark.parametrize("long", ["0123456789" * 3, "é" * 15])
def test_truncation_and_padding_of_the_file_are_switched_off(tmp_path: Path, long: str) -> None:
    backend = byte_level([])
    backend.enable_truncation(8)
    backend.enable_padding(length=64, pad_id=5)
    backend.save(str(tmp_path / "tokenizer.json"))
    for tokenizer in (Tokenizer.from_file(tmp_path), Tokenizer(backend)):
        ids = tokenizer.encode(long)
        assert len(ids) == 30
        assert tokenizer.encode(long, add_special_tokens=True) == [tokenizer.token_id("<bos>"), *ids]
        texts = ["a", long]  # padding and truncation of batches are settings of their own in some versions
        batch = tokenizer.backend.encode_batch(texts, add_special_tokens=False)
        assert [encoding.ids for encoding in batch] == [tokenizer.encode(text) for text in texts]
        assert tokenizer.decode(ids) == long


def test_vocabulary_counts_added_tokens() -> None:
    tokenizer = Tokenizer(byte_level(["return"]))
    assert tokenizer.vocab_size == 256 + 2
    assert tokenizer.id_to_token(257) == "<bos>"
    assert tokenizer.token_id("return") == 256
    assert tokenizer.token_id("nowhere") is None


def test_vocabulary_with_a_gap_reaches_to_its_highest_id() -> None:
    tokenizer = Tokenizer(tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 9}, unk_token="a")))
    assert tokenizer.vocab_size == 10
    assert tokenizer.encode("b") == [9]
    assert tokenizer.id_to_token(5) is None


def test_each_id_is_decoded_by_itself() -> None:
    tokenizer = Tokenizer(byte_level([]))
    assert tokenizer.decode(tokenizer.encode("é")) == "é"
    assert tokenizer.decode_each(tokenizer.encode("é")) == ["\ufffd", "\ufffd"]


@pytest.mark.parametrize("content", ["", "{", '{"model": 5}', "\x00\x01"])
def test_a_corrupt_file_is_named_with_its_remedy(tmp_path: Path, content: str) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=r"tokenizer\.json cannot be read .* copy it again"):
        Tokenizer.from_file(tmp_path)


def test_a_missing_file_is_named_with_its_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no file .*tokenizer\.json; give a tokenizer\.json"):
        Tokenizer.from_file(tmp_path)
    with pytest.raises(ValueError, match=r"no file .*elsewhere"):
        Tokenizer.from_file(tmp_path / "elsewhere")


def test_text_that_is_not_unicode_is_refused() -> None:
    with pytest.raises(ValueError, match="unpaired surrogates"):
        Tokenizer(byte_level([])).encode("a\ud800")


def test_deepseek_tokenizer_gives_the_golden_token_ids(deepseek_tokenizer: Tokenizer, golden: dict) -> None:
    assert deepseek_tokenizer.vocab_size == 129_280
    for case in golden["cases"].values():
        assert deepseek_tokenizer.encode(case["text"]) == case["token_ids"]
        assert deepseek_tokenizer.decode(case["token_ids"]) == case["text"]

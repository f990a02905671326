"""Special tokens around a text: those that `AutoTokenizer` gives for the same directory, and each of them once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from reasoning.text.tokenizer import Tokenizer

BOS, EOS = "<bos>", "<eos>"
TEXTS = [
    "hi",
    "",
    "def f(x):\n    return",
    "é😀",
    "a<eos>b",
    "a <bos> b",
    "one<plain>two",
    " <plain> ",
    "▁ ",
    "\x00",
    "   ",
]


def byte_level(unmarked: bool = False) -> tokenizers.Tokenizer:
    """Every byte is a token; `<bos>` and `<eos>` are special, unless they are left to the vocabulary alone."""
    vocab = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    if unmarked:
        vocab |= {BOS: 256, EOS: 257}
    backend = tokenizers.Tokenizer(models.BPE(vocab, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if not unmarked:
        backend.add_special_tokens([BOS, EOS])
    backend.add_tokens(["<plain>"])
    return backend


def sentence_pieces(prefix_space: bool) -> tokenizers.Tokenizer:
    """Pieces with byte fallback, behind normalizers that strip and compose."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), BOS, EOS, "▁", *"abcdefhinorstw▁"]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    backend = tokenizers.Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Strip(), normalizers.NFC()])
    scheme = "first" if prefix_space else "never"
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    backend.add_special_tokens(["<unk>", BOS, EOS])
    backend.add_tokens(["<plain>"])
    return backend


BACKENDS = {
    "bytes": byte_level,
    "bytes, special tokens unmarked": lambda: byte_level(unmarked=True),
    "pieces": lambda: sentence_pieces(prefix_space=False),
    "pieces with a space in front": lambda: sentence_pieces(prefix_space=True),
}


def template(backend: tokenizers.Tokenizer, single: str) -> processors.TemplateProcessing:
    known = [(token, backend.token_to_id(token)) for token in (BOS, EOS)]
    return processors.TemplateProcessing(single=single, special_tokens=known)


PROCESSORS = {
    "none": lambda backend: None,
    "bytes": lambda backend: processors.ByteLevel(trim_offsets=False),
    "bos": lambda backend: template(backend, f"{BOS} $A"),
    "bos and eos": lambda backend: template(backend, f"{BOS} $A {EOS}"),
    "eos": lambda backend: template(backend, f"$A {EOS}"),
    "bytes, then bos": lambda backend: processors.Sequence(
        [processors.ByteLevel(trim_offsets=False), template(backend, f"{BOS} $A")]
    ),
}
LEGACY_BOS = {"__type": "AddedToken", "content": BOS, "lstrip": False, "normalized": True, "rstrip": False}
CONFIGS: dict[str, dict[str, Any] | None] = {
    "no file": None,
    "empty": {},
    "names": {"bos_token": BOS, "eos_token": EOS},
    "false": {"bos_token": BOS, "eos_token": EOS, "add_bos_token": False, "add_eos_token": False},
    "null": {"bos_token": BOS, "eos_token": EOS, "add_bos_token": None},
    "legacy": {
        "bos_token": LEGACY_BOS,
        "eos_token": EOS,
        "add_bos_token": False,
        "legacy": True,
        "sp_model_kwargs": {},
    },
    "fast": {"bos_token": BOS, "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False},
    "added": {"bos_token": BOS, "added_tokens_decoder": {}, "additional_special_tokens": [EOS], "pad_token": EOS},
    "true without a name": {"add_bos_token": True, "bos_token": None},
}


def write(directory: Path, backend: str, processor: str, config: dict[str, Any] | None) -> tokenizers.Tokenizer:
    made = BACKENDS[backend]()
    made.post_processor = PROCESSORS[processor](made)
    made.save(str(directory / "tokenizer.json"))
    (directory / "config.json").write_text(json.dumps({"model_type": "deepseek_v3", "bos_token_id": 3}))
    if config is not None:
        (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return made


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("processor", PROCESSORS)
def test_texts_get_the_ids_that_transformers_gives(tmp_path: Path, backend: str, processor: str) -> None:
    for name, config in CONFIGS.items():
        directory = tmp_path / name
        directory.mkdir()
        write(directory, backend, processor, config)
        ours, theirs = Tokenizer.from_file(directory), transformers.AutoTokenizer.from_pretrained(directory)
        for text in TEXTS:
            ids = theirs(text).input_ids
            assert ours.encode(text, add_special_tokens=True) == ids, (name, text)
            assert ours.encode(text) == theirs(text, add_special_tokens=False).input_ids, (name, text)
            assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True), (name, text)
            assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids), (name, text)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("processor", ["none", "bytes"])
@pytest.mark.parametrize("flags", [(True, False), (False, True), (True, True)], ids=str)
@pytest.mark.parametrize("bos", [BOS, LEGACY_BOS, {"content": BOS}], ids=["string", "object", "bare object"])
def test_flags_add_the_tokens_that_transformers_adds(
    tmp_path: Path, backend: str, processor: str, flags: tuple[bool, bool], bos: object
) -> None:
    """transformers 5 heeds the flags only where they are arguments, transformers 4 also where the file has them."""
    keys = {"add_bos_token": flags[0], "add_eos_token": flags[1]}
    write(tmp_path, backend, processor, {"bos_token": bos, "eos_token": EOS, **keys})
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"), bos_token=BOS, eos_token=EOS, **keys
    )
    ours = Tokenizer.from_file(tmp_path)
    for text in TEXTS:
        assert ours.encode(text, add_special_tokens=True) == theirs(text).input_ids, text


@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize("text", ["hi", ""])
def test_flags_and_post_processor_together_add_each_token_once(tmp_path: Path, processor: str, text: str) -> None:
    flags = {"add_bos_token": True, "add_eos_token": True, "bos_token": BOS, "eos_token": EOS}
    write(tmp_path, "bytes", processor, flags)
    tokenizer = Tokenizer.from_file(tmp_path)
    assert tokenizer.encode(text, add_special_tokens=True) == [256, *tokenizer.encode(text), 257]


@pytest.mark.parametrize("processor", ["bos and eos", "none"])
def test_a_text_with_special_tokens_at_its_ends_does_not_get_them_twice(tmp_path: Path, processor: str) -> None:
    flags = {"add_bos_token": True, "add_eos_token": True, "bos_token": BOS, "eos_token": EOS}
    write(tmp_path, "bytes", processor, flags)
    tokenizer = Tokenizer.from_file(tmp_path)
    whole = tokenizer.encode(f"{BOS}hi{EOS}")
    for text in ("hi", f"{BOS}hi", f"hi{EOS}", f"{BOS}hi{EOS}"):
        assert tokenizer.encode(text, add_special_tokens=True) == whole
    assert tokenizer.encode(BOS, add_special_tokens=True) == [256, 257]
    assert tokenizer.encode(f"{BOS}{BOS}hi", add_special_tokens=True) == [256, *whole]  # as its author wrote it


def test_a_name_may_stand_in_the_legacy_special_tokens_map(tmp_path: Path) -> None:
    write(tmp_path, "bytes", "none", {"add_bos_token": True})
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"bos_token": {"content": BOS, "lstrip": False}}))
    assert Tokenizer.from_file(tmp_path).encode("", add_special_tokens=True) == [256]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"tokenizer_config\.json: .* is not valid JSON .*copy it again"),
        ("[" * 100_000, r"tokenizer_config\.json: .* is not valid JSON"),
        ("[1]", r"tokenizer_config\.json: .* holds no JSON object but a list"),
        ('{"add_bos_token": "yes"}', r"tokenizer_config\.json: add_bos_token 'yes' is not true or false"),
        ('{"bos_token": 5}', r"tokenizer_config\.json: bos_token 5 is not the text of a token"),
        ('{"bos_token": {"content": []}}', r"tokenizer_config\.json: bos_token .* is not the text of a token"),
        ('{"additional_special_tokens": [7]}', r"additional_special_tokens 7 is not the text of a token"),
        ('{"additional_special_tokens": 7}', r"additional_special_tokens 7 is not a list of tokens"),
        ('{"add_bos_token": true, "bos_token": "<s>"}', r"bos_token '<s>' is to be added .* not in the vocabulary"),
    ],
)
def test_a_damaged_tokenizer_config_is_named_with_its_field(tmp_path: Path, content: str, message: str) -> None:
    write(tmp_path, "bytes", "none", None)
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        Tokenizer.from_file(tmp_path)


def test_tokens_that_the_vocabulary_lacks_are_not_added_to_it(tmp_path: Path) -> None:
    write(tmp_path, "bytes", "none", {"bos_token": "<s>", "additional_special_tokens": ["<more>"]})
    tokenizer = Tokenizer.from_file(tmp_path)
    assert tokenizer.vocab_size == 256 + 3
    assert tokenizer.token_id("<s>") is None

"""Token shards: every token is predicted once, and what is read is what was written."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from reasoning.corpora.manifest import HELD_OUT, TRAIN, Manifest, StoredFile
from reasoning.corpora.packing import Document, DocumentRecord
from reasoning.corpora.shard_writer import PADDING, ShardWriter, cut_sequences
from reasoning.corpora.tokens import TokenShards

WINDOW = 8


def document(number: int, length: int, base: int = 0) -> Document:
    ids = base + 100 * number + np.arange(length, dtype=np.int32)
    return Document(ids, DocumentRecord("s", f"p{number % 3}", f"{number}.py", 1, length, 10 * length))


DOCUMENTS = [document(number, length) for number, length in enumerate([5, 1, 30, 8, 9, 3, 17])]  # 73 tokens


def write(directory: Path, documents=DOCUMENTS, vocab_size=1000, shard_bytes=1 << 20) -> Manifest:
    directory.mkdir(exist_ok=True)
    writer = ShardWriter(directory, WINDOW, vocab_size, shard_bytes)
    (directory / "tokenizer.json").write_text("{}")
    manifest = Manifest(
        config={"window": WINDOW},
        config_fingerprint="0" * 32,
        split="units",
        window=WINDOW,
        vocab_size=vocab_size,
        tokenizer=StoredFile.of(directory / "tokenizer.json", vocab_size),
        sources=(),
        train=writer.write(TRAIN, documents, pad=None),
        held_out=writer.write(HELD_OUT, documents[:4], pad=7),
    )
    manifest.write(directory)
    return manifest


def whole(documents):
    tokens = np.concatenate([one.ids for one in documents])
    return tokens, np.repeat(np.arange(len(documents)), [len(one.ids) for one in documents])


@pytest.mark.parametrize("pad", [None, 7])
@pytest.mark.parametrize("block_tokens", [1, 10, 1000])
@pytest.mark.parametrize("window", [2, 8, 9, 24, 36, 71, 72])
def test_each_token_but_the_first_is_predicted_once_with_the_number_of_its_document(window, block_tokens, pad):
    blocks = list(cut_sequences([one.ids for one in DOCUMENTS], window, pad, block_tokens))
    tokens, numbers = np.concatenate(blocks, axis=1)
    expected_tokens, expected_numbers = whole(DOCUMENTS)
    count = len(expected_tokens) - 1 if pad is not None else len(expected_tokens[1:]) // window * window
    np.testing.assert_array_equal(tokens[:, 1:].reshape(-1)[:count], expected_tokens[1 : 1 + count])
    np.testing.assert_array_equal(numbers[:, 1:].reshape(-1)[:count], expected_numbers[1 : 1 + count])
    np.testing.assert_array_equal(tokens[1:, 0], tokens[:-1, -1])
    assert tokens[0, 0] == expected_tokens[0]
    padding = numbers[:, 1:].reshape(-1)[count:]
    assert padding.tolist() == [PADDING] * (0 if pad is None else -(len(expected_tokens) - 1) % window)
    assert set(tokens[:, 1:].reshape(-1)[count:].tolist()) <= {pad}


def test_less_than_a_window_is_left_out_or_padded():
    few = [np.arange(4, dtype=np.int32)]
    assert list(cut_sequences(few, 8, None)) == []
    [[[tokens], [numbers]]] = list(cut_sequences(few, 8, 7))
    assert tokens.tolist() == [0, 1, 2, 3, 7, 7, 7, 7, 7]
    assert numbers.tolist() == [0, 0, 0, 0, -1, -1, -1, -1, -1]
    assert list(cut_sequences([np.zeros(1, np.int32)], 8, 7)) == list(cut_sequences([], 8, 7)) == []


@pytest.mark.parametrize("shard_bytes", [1, 200, 1 << 20])
@pytest.mark.parametrize("base", [0, 70_000])
def test_sequences_are_read_in_any_order_from_as_many_shards_as_there_are(base, shard_bytes, tmp_path):
    documents = [document(number, 20, base) for number in range(40)]
    write(tmp_path / "c", documents, vocab_size=base + 5000, shard_bytes=shard_bytes)
    shards = TokenShards.open(tmp_path / "c")
    assert (len(shards.paths) > 1) == (shard_bytes < 1 << 20)
    assert len(shards) == sum(shards.rows) == (800 - 1) // WINDOW
    tokens, numbers = whole(documents)
    wanted = np.random.default_rng(0).integers(0, len(shards), 300)
    found = shards.read(wanted)
    places = wanted[:, None] * WINDOW + np.arange(WINDOW + 1)
    assert found.tokens.dtype == found.documents.dtype == np.int64
    np.testing.assert_array_equal(found.tokens, tokens[places])
    np.testing.assert_array_equal(found.documents, numbers[places])
    assert shards.read([]).tokens.shape == (0, WINDOW + 1)


@pytest.mark.parametrize(("vocab_size", "kind"), [(65536, pa.uint16()), (65537, pa.int32())])
def test_tokens_take_two_bytes_where_the_vocabulary_allows(vocab_size, kind, tmp_path):
    write(tmp_path / "c", vocab_size=vocab_size)
    table = pa.ipc.open_file(pa.memory_map(str(tmp_path / "c" / "train-00000.arrow"))).read_all()
    assert table.schema.field("tokens").type.value_type == kind
    assert table.column("tokens").to_pylist()[0] == whole(DOCUMENTS)[0][: WINDOW + 1].tolist()
    assert table.schema.field("documents").type.list_size == WINDOW + 1


def test_the_list_of_documents_says_where_each_comes_from_and_how_many_bytes_it_spells(tmp_path):
    manifest = write(tmp_path / "c")
    shards = TokenShards.open(tmp_path / "c", HELD_OUT)
    assert shards.documents().to_pylist() == [vars(one.record) for one in DOCUMENTS[:4]]
    assert shards.document_bytes.tolist() == [50, 10, 300, 80]
    assert shards.document_bytes.sum() == manifest.held_out.text_bytes
    found = shards.read(np.arange(len(shards))).documents
    assert found.max() == 3
    assert (found == PADDING).sum() == -(44 - 1) % WINDOW
    assert manifest.train.projects == ("p0", "p1", "p2")


def test_a_manifest_is_read_as_it_was_written_and_its_fingerprint_covers_every_file(tmp_path):
    manifest = write(tmp_path / "c")
    again = Manifest.read(tmp_path / "c")
    assert again == manifest
    assert again.fingerprint == manifest.fingerprint
    other = write(tmp_path / "d", [document(number, 20, 1) for number in range(7)])
    assert other.fingerprint != manifest.fingerprint
    assert dataclasses.replace(manifest, split="projects").fingerprint != manifest.fingerprint


def damage(directory: Path, what: str) -> None:
    shard = directory / "train-00000.arrow"
    content = bytearray(shard.read_bytes())
    if what == "missing":
        shard.unlink()
    elif what == "truncated":
        shard.write_bytes(content[:-100])
    elif what == "foreign":
        shard.write_bytes(b"x" * len(content))
    elif what == "flipped":
        content[len(content) // 2] ^= 1
        shard.write_bytes(content)


@pytest.mark.parametrize(
    ("what", "message"), [("missing", "is missing; copy"), ("truncated", r"has \d+ bytes instead of \d+; copy")]
)
def test_a_shard_that_is_missing_or_has_another_size_is_noticed_when_the_corpus_is_opened(what, message, tmp_path):
    write(tmp_path / "c")
    damage(tmp_path / "c", what)
    with pytest.raises(ValueError, match=rf"corpus: .*train-00000\.arrow {message}"):
        TokenShards.open(tmp_path / "c")
    assert len(TokenShards.open(tmp_path / "c", HELD_OUT)) > 0  # the other side is whole


def test_a_file_that_is_no_shard_is_noticed_when_it_is_read(tmp_path):
    write(tmp_path / "c")
    damage(tmp_path / "c", "foreign")
    shards = TokenShards.open(tmp_path / "c")
    with pytest.raises(ValueError, match=r"train-00000\.arrow cannot be read .* build the corpus again"):
        shards.read([0])


def test_a_shard_of_another_window_is_noticed_when_it_is_read(tmp_path):
    manifest = write(tmp_path / "c")
    dataclasses.replace(manifest, window=WINDOW + 1).write(tmp_path / "c")
    with pytest.raises(ValueError, match="holds other columns than the manifest says"):
        TokenShards.open(tmp_path / "c").read([0])


def test_a_flipped_bit_is_noticed_when_the_corpus_is_verified(tmp_path):
    write(tmp_path / "c")
    TokenShards.open(tmp_path / "c").verify()
    damage(tmp_path / "c", "flipped")
    shards = TokenShards.open(tmp_path / "c")
    with pytest.raises(ValueError, match=r"train-00000\.arrow is damaged: its checksum"):
        shards.verify()


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no corpus\.json; build a corpus there with `engram corpus`"):
        TokenShards.open(tmp_path)
    write(tmp_path / "c")
    with pytest.raises(ValueError, match="split: 'test' is unknown; use train or held-out"):
        TokenShards.open(tmp_path / "c", "test")
    shards = TokenShards.open(tmp_path / "c")
    for wrong in ([len(shards)], [0, -1]):
        with pytest.raises(IndexError, match="the split has 9"):
            shards.read(wrong)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"window":8', '"window":9', "was changed since it was written"),
        ('"format":"engram-corpus"', '"format":"other"', "format other version 1 is not engram-corpus 1"),
        ('"vocab_size":1000,', "", "cannot be read .*vocab_size"),
        ("{", "[", "cannot be read"),
    ],
)
def test_a_manifest_that_was_changed_is_refused(old, new, message, tmp_path):
    write(tmp_path / "c")
    path = tmp_path / "c" / "corpus.json"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match=rf"corpus: .*corpus\.json .*{message}"):
        TokenShards.open(tmp_path / "c")

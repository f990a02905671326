"""Documents: what is in them, in which order, and that their tokens spell the files."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
from tokenizers import Tokenizer as BpeTokenizer

from reasoning.corpora.bpe import Marks
from reasoning.corpora.packing import Packer
from reasoning.corpora.spool import SourceFile

from .material import code, small_bpe

END, _, PREFIX, SUFFIX, MIDDLE, FILE = range(6)
TEXTS = {
    ("s", "one", "z.py"): code("z", 3),
    ("s", "one", "a/b.py"): "x = '<|endoftext|><|file_sep|>'\r\n",
    ("s", "one", "a/a.py"): code("a", 2),
    ("s", "two", "a.go"): "\ufeffpackage a // 秦\n",
    ("t", "one", "only.py"): "y = 1\n",
}
FILES = {SourceFile(*key, start=0, size=len(text.encode())): text for key, text in TEXTS.items()}


def bpe() -> BpeTokenizer:
    return BpeTokenizer.from_str(small_bpe().to_str())


def packer(tokenizer=None, **changes):
    tokenizer = tokenizer or bpe()
    settings = {"repositories": True, "document_tokens": 10**6, "fim_rate": 0.0, "seed": 0, **changes}
    return Packer(tokenizer, Marks.find(tokenizer), **settings)


def documents(tokenizer=None, files=FILES, **changes):
    return list(packer(tokenizer, **changes).documents(files, FILES.__getitem__))


def spelled(ids):
    return small_bpe().decode(list(ids), skip_special_tokens=False)


def split_at(ids, token):
    """The runs of ids behind each occurrence of a token."""
    places = [*np.flatnonzero(ids == token), len(ids)]
    return [ids[begin + 1 : end] for begin, end in pairwise(places)]


def test_a_file_of_its_own_is_a_document_behind_the_end_of_text_token():
    found = documents(repositories=False)
    assert [document.ids[0] for document in found] == [END] * 5
    texts = {document.record.path: spelled(document.ids[1:]) for document in found}
    assert texts == {path: text for (_, _, path), text in TEXTS.items()}


def test_a_repository_is_a_document_of_its_files_by_folder_and_name_each_below_its_path():
    found = {(one.record.source, one.record.project): one for one in documents()}
    assert found.keys() == {("s", "one"), ("s", "two"), ("t", "one")}
    one = found["s", "one"]
    assert one.ids[:2].tolist() == [END, FILE]
    paths = ["z.py", "a/a.py", "a/b.py"]
    assert [spelled(part) for part in split_at(one.ids, FILE)] == [f"{p}\n{TEXTS['s', 'one', p]}" for p in paths]
    assert (one.record.path, one.record.files, one.record.tokens) == ("z.py", 3, len(one.ids))


def test_bytes_are_those_of_the_text_that_the_tokens_spell():
    for repositories in (True, False):
        for document in documents(repositories=repositories, fim_rate=1.0):
            text = small_bpe().decode(document.ids[document.ids > FILE].tolist(), skip_special_tokens=False)
            assert document.record.text_bytes == len(text.encode())


def test_special_tokens_that_a_file_spells_out_stay_text():
    ids = np.concatenate([one.ids for one in documents(repositories=False)])
    assert (ids == END).sum() == 5
    assert (ids == FILE).sum() == 0


def test_a_document_ends_before_the_file_that_would_be_too_much_and_holds_one_file_at_least():
    whole = {one.record.path: len(one.ids) for one in documents(repositories=True, document_tokens=1)}
    assert len(whole) == 5
    limit = whole["a/a.py"] + whole["a/b.py"] - 2  # without their end-of-text tokens
    found = [one for one in documents(document_tokens=limit) if (one.record.source, one.record.project) == ("s", "one")]
    assert [(one.record.path, one.record.files) for one in found] == [("z.py", 1), ("a/a.py", 2)]
    assert [one.ids[0] for one in found] == [END, END]
    found = [one for one in documents(document_tokens=limit - 1) if one.record.project == "one"]
    assert sorted(one.record.files for one in found) == [1, 1, 1, 1]


def test_a_file_is_rearranged_in_either_order_so_that_its_parts_are_the_file():
    orders = []
    for document in (one for seed in range(8) for one in documents(repositories=False, fim_rate=1.0, seed=seed)):
        marks = [token for token in document.ids.tolist() if token in (PREFIX, SUFFIX, MIDDLE)]
        assert marks == [PREFIX, SUFFIX, MIDDLE]
        prefix, suffix, middle = (split_parts(document.ids, mark) for mark in marks)
        # With the suffix first, what follows the middle's mark is the prefix and then the middle.
        assert (
            spelled([*prefix, *middle, *suffix])
            == TEXTS[document.record.source, document.record.project, document.record.path]
        )
        orders.append(len(prefix) > 0)
    assert 10 < sum(orders) < 30


def split_parts(ids, mark):
    """The ids behind a mark, up to the next one."""
    begin = ids.tolist().index(mark) + 1
    end = next((at for at in range(begin, len(ids)) if ids[at] in (PREFIX, SUFFIX, MIDDLE)), len(ids))
    return ids[begin:end]


def test_the_path_of_a_rearranged_file_stays_in_front():
    for document in documents(fim_rate=1.0):
        for part in split_at(document.ids, FILE):
            head, _, _ = spelled(part).partition("\n<|fim_prefix|>")
            assert (document.record.source, document.record.project, head) in TEXTS


def without(*tokens):
    text = small_bpe().to_str()
    for token in tokens:
        text = text.replace(token, f"<other {SPECIALS.index(token)}>")
    return BpeTokenizer.from_str(text)


SPECIALS = ["<|file_sep|>", "<|fim_prefix|>", "<|fim_middle|>"]


def test_a_vocabulary_without_a_token_for_paths_gets_them_as_comments():
    found = documents(without("<|file_sep|>"))
    text = {spelled(one.ids[1:]).partition("\n")[0] for one in found}
    assert text == {"# z.py", "// a.go", "# only.py"}
    assert all(one.record.text_bytes == len(spelled(one.ids[1:]).encode()) for one in found)


def test_fill_in_the_middle_is_refused_for_a_vocabulary_without_its_tokens():
    for missing in ("<|fim_prefix|>", "<|fim_middle|>"):
        with pytest.raises(ValueError, match=r"fim_rate: 0\.5 needs tokens .* which the tokenizer lacks; use 0"):
            packer(without(missing), fim_rate=0.5)
        assert documents(without(missing), fim_rate=0.0)


def test_documents_do_not_depend_on_the_order_of_the_files_or_on_how_many_are_tokenized_at_once(monkeypatch):
    first = documents(repositories=False, fim_rate=0.5)
    monkeypatch.setattr("reasoning.corpora.packing._FILES_AT_ONCE", 2)
    again = documents(files=list(FILES)[::-1], repositories=False, fim_rate=0.5)
    assert [one.record for one in first] == [one.record for one in again]
    assert all(np.array_equal(one.ids, two.ids) for one, two in zip(first, again, strict=True))
    other = documents(repositories=False, fim_rate=0.5, seed=1)
    assert [one.record.path for one in other] != [one.record.path for one in first]
    assert sorted(map(dataclasses.astuple, (one.record for one in documents(repositories=False, seed=1)))) == sorted(
        map(dataclasses.astuple, (one.record for one in documents(repositories=False)))
    )

"""Which files are trained on, that their text survives tokenisation, and that windows cover it."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import numpy as np
import pytest

from reasoning.training.corpus import END, PAD, Corpus, Stream, read

from .conftest import FILES

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


def test_every_file_is_trained_on_or_held_out(corpus, corpus_dir):
    assert set(corpus.train) | set(corpus.held_out) == set(corpus_dir.rglob("*.py"))
    assert not set(corpus.train) & set(corpus.held_out)
    assert len(corpus.train) + len(corpus.held_out) == FILES
    assert 1 <= len(corpus.held_out) <= FILES // 5


def names(root, files):
    return [path.relative_to(root).as_posix() for path in files]


def test_the_split_depends_on_the_paths_below_the_root_alone(corpus, corpus_dir, tmp_path):
    for name in names(corpus_dir, corpus.train + corpus.held_out):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("other = 1\n")
    (tmp_path / "zz_added.py").write_text("more = 1\n")
    again = Corpus.find(tmp_path)
    assert set(names(corpus_dir, corpus.held_out)) == set(names(tmp_path, again.held_out)) - {"zz_added.py"}
    # Stated, because a split that changes lets a model be tested on what an earlier one was trained on.
    assert {path.stem for path in corpus.held_out} == {"module_36", "module_13", "module_18"}


def test_files_that_are_no_source_are_left_out(corpus, corpus_dir, tmp_path):
    for name in names(corpus_dir, corpus.train + corpus.held_out):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    (tmp_path / "latin.py").write_bytes(b"# caf\xe9\n")
    (tmp_path / "empty.py").write_text(" \n")
    (tmp_path / "notes.txt").write_text("x = 1\n")
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "installed.py").write_text("x = 1\n")
    again = Corpus.find(tmp_path)
    assert len(again.train) + len(again.held_out) == FILES


def test_a_folder_without_enough_files_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"data: .* has 0 usable \.py files; too few"):
        Corpus.find(tmp_path)
    with pytest.raises(ValueError, match=r"data: .*nowhere is not a folder; give one"):
        Corpus.find(tmp_path / "nowhere")


def test_line_ends_are_read_as_they_are(tmp_path):
    (tmp_path / "a.py").write_bytes(b"a\r\nb\rc\n")
    assert read(tmp_path / "a.py") == "a\r\nb\rc\n"


@pytest.mark.parametrize("text", ODD_TEXTS, ids=range(len(ODD_TEXTS)))
def test_the_tokenizer_gives_back_every_text(bpe, text):
    ids = bpe.encode(text, add_special_tokens=False).ids
    assert bpe.decode(ids, skip_special_tokens=False) == text


def test_the_tokenizer_begins_with_its_marks(bpe):
    assert (bpe.token_to_id(END), bpe.token_to_id(PAD)) == (0, 1)
    assert 256 + 2 < bpe.get_vocab_size() <= 300
    assert len(bpe.encode("\n    return").ids) <= 3  # a line break takes its indentation along


def test_documents_lie_end_to_end_each_after_its_mark(bpe, corpus):
    stream = Stream.encode(bpe, corpus.train)
    assert len(stream.tokens) == len(stream.documents)
    assert len(stream.sizes) == len(corpus.train)
    assert np.array_equal(np.flatnonzero(stream.tokens == 0), np.flatnonzero(np.diff(stream.documents, prepend=-1)))
    for number, path in enumerate(corpus.train):
        first, *rest = stream.document(number).tolist()
        assert first == bpe.token_to_id(END)
        assert bpe.decode(rest) == read(path)
        assert stream.sizes[number] == path.stat().st_size


def stream_of(length):
    return Stream(np.arange(length, dtype=np.int32), np.zeros(length, np.int32), np.array([length]))


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_an_epoch_covers_the_stream_once(batch):
    length, stream = 7, stream_of(1000)
    per_epoch = (1000 - length - 1) // length  # at least, whatever the phase
    starts = np.concatenate(list(islice(stream.windows(length, batch, seed=3), -(-per_epoch // batch))))[:per_epoch]
    assert len(set(starts.tolist())) == per_epoch
    assert len({start % length for start in starts.tolist()}) == 1  # so that windows do not overlap
    assert starts.min() >= 0
    assert starts.max() + length < 1000
    assert not np.array_equal(starts, np.sort(starts))


def test_epochs_shift_and_shuffle_anew():
    seen = np.concatenate(list(islice(stream_of(1000).windows(7, 10, seed=3), 2000)))
    assert len(set((seen % 7).tolist())) == 7
    tokens = Counter((seen[:, None] + np.arange(7)).ravel().tolist())
    inner = [tokens[token] for token in range(14, 980)]
    assert max(inner) - min(inner) <= 1


def test_windows_repeat_with_their_seed():
    def first(seed):
        return [starts.tolist() for starts in islice(stream_of(500).windows(7, 4, seed), 30)]

    assert first(1) == first(1)
    assert first(1) != first(2)


def test_a_stream_shorter_than_a_window_is_refused():
    with pytest.raises(ValueError, match=r"window: 8 tokens do not fit into 8 tokens of data; .* or give more files"):
        next(stream_of(8).windows(8, 1, 0))
    assert next(stream_of(10).windows(8, 2, 0)).tolist() == [0, 0]

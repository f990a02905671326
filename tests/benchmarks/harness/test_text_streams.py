from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

from benchmarks.harness.text_streams import PROSE, find_files, read_stream, text_of_html
from reasoning.text.tokenizer import Tokenizer


@pytest.fixture
def tokenizer() -> Tokenizer:
    backend = Backend(models.WordLevel({"other": 0, "a": 1, "b": 2}, unk_token="other"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return Tokenizer(backend)


def test_a_page_becomes_its_text_without_markup() -> None:
    page = "<head><style>p {x}</style></head><h1>A  title</h1><p>One\nline &amp; <b>more</b></p><script>var x</script>"
    assert text_of_html(page) == "A title\nOne line & more"


def test_stream_is_the_same_every_time_and_ends_at_the_count(tmp_path: Path, tokenizer: Tokenizer) -> None:
    for name, word in (("one.txt", "a "), ("two.md", "b "), ("short.txt", ""), ("code.py", "x ")):
        (tmp_path / name).write_text(word * 1000)
    stream = read_stream("prose", [tmp_path], PROSE, 1500, tokenizer)
    assert (len(stream.tokens), stream.files) == (1500, 2)
    assert set(stream.tokens.tolist()) == {1, 2}
    assert stream.sha256 == read_stream("prose", [tmp_path], PROSE, 1500, tokenizer).sha256
    assert len(find_files([tmp_path], PROSE)) == 3


def test_no_text_is_an_error(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="prose: no text in"):
        read_stream("prose", [tmp_path], PROSE, 10, tokenizer)

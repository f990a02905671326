from __future__ import annotations

import json
import os
import sys

import pytest

from cluster.batch.reading import read_lines
from cluster.batch.stream_output import StreamOutput


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("a\n\nb\n")
    return path


def test_records_appear_on_standard_output_at_once(source, capfd):
    with StreamOutput(source) as output:
        assert (output.done, output.total, output.attempt) == (0, 2, None)
        for line in read_lines(source, 9):
            output.write([{"id": line.content.decode(), "text": "é"}], line.digest)
            assert json.loads(capfd.readouterr().out) == {"id": line.content.decode(), "text": "é"}


def test_nothing_is_left_beside_it(source, tmp_path, capfd):
    with StreamOutput(source) as output:
        output.begin(None)
        output.write([{}], "")
    assert list(tmp_path.iterdir()) == [source]


@pytest.fixture
def redirected(monkeypatch):
    """Function that lets standard output go to a file, as the shell's > does."""
    files = []

    def redirect(path, mode="a"):
        files.append(open(path, mode))  # noqa: SIM115 -- closed below, without the flush that fails
        monkeypatch.setattr(sys, "stdout", files[0])

    yield redirect
    for file in files:
        file.buffer.raw.close()


def test_standard_output_that_is_full_is_an_error_at_once(source, redirected):
    redirected("/dev/full", "w")
    with StreamOutput(source) as output, pytest.raises(ValueError, match=r"output: standard output .*No space left"):
        output.write([{"id": "a"}], "")


def test_a_reader_that_left_is_told_apart_from_an_error(source, redirected, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    redirected(writer, "w")
    with StreamOutput(source) as output, pytest.raises(BrokenPipeError):
        output.write([{"id": "a"}], "")


def test_standard_output_may_not_be_the_input(source, redirected):
    redirected(source)
    with pytest.raises(ValueError, match=r"output: standard output goes to .*, which is the input"):
        StreamOutput(source)
    assert source.read_text() == "a\n\nb\n"


def test_a_standard_output_that_is_closed_is_named(source, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(ValueError, match="output: standard output is closed"):
        StreamOutput(source)

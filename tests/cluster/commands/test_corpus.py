"""`engram corpus` builds what its flags say and prints what became of the files."""

from __future__ import annotations

import argparse

import pytest

from cluster.commands import corpus
from reasoning.corpora.manifest import Manifest
from tests.reasoning.corpora.material import write_project


@pytest.fixture
def engram():
    def call(*arguments):
        parser = argparse.ArgumentParser()
        corpus.add_parser(parser.add_subparsers(), argparse.HelpFormatter)
        args = parser.parse_args(["corpus", *map(str, arguments)])
        return args.run(args)

    return call


def test_the_command_builds_a_corpus_and_prints_it_as_tables(engram, tmp_path, capsys):
    root = write_project(tmp_path / "alone", 40)
    (root / "notes.txt").write_text("x")
    (root / "c.c").write_text("int main(void) { return 0; }\n")
    flags = ("--output", tmp_path / "c", "--source", root, "--suffix", ".py", "--suffix", ".c", "--vocab-size", "400")
    assert engram(*flags, "--window", "64", "--packing", "files") == 0
    said = capsys.readouterr().out
    manifest = Manifest.read(tmp_path / "c")
    assert said.splitlines()[0].split() == ["source", "version", "files", "bytes", "left", "out"]
    assert f"{manifest.sources[0].kept_bytes:,}  1 other suffix" in said
    train = next(line for line in said.splitlines() if line.startswith("train"))
    assert train.split()[1:4] == ["1", str(manifest.train.files), str(manifest.train.documents.rows)]
    assert f"{manifest.train.sequences:,}" in train
    assert manifest.fingerprint in said
    assert (manifest.window, manifest.config["packing"], manifest.config["suffixes"]) == (64, "files", [".py", ".c"])
    assert engram(*flags, "--window", "64", "--packing", "files") == 0
    assert "this corpus is there already" in capsys.readouterr().out


def test_a_mistake_names_its_field_before_a_colon_or_in_backquotes(engram, tmp_path):
    with pytest.raises(ValueError, match=r"^window: 1 is too small"):
        engram("--output", tmp_path / "c", "--window", "1")

"""A corpus is built as a whole or not at all, is the same when it is built again, and holds out what it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as BpeTokenizer
from tokenizers import models

from reasoning.corpora import build
from reasoning.corpora.build import build_corpus, find_corpus
from reasoning.corpora.config import CorpusConfig
from reasoning.corpora.manifest import HELD_OUT, TRAIN
from reasoning.corpora.shard_writer import PADDING
from reasoning.corpora.tokens import TokenShards
from reasoning.text.tokenizer import Tokenizer

from .material import code, small_bpe, write_project


@pytest.fixture(scope="module")
def projects(tmp_path_factory) -> Path:
    """Twelve projects of five files each."""
    root = tmp_path_factory.mktemp("projects")
    for number in range(12):
        write_project(root / f"project{number}", 5)
    return root


def config(root: Path, **changes) -> CorpusConfig:
    return CorpusConfig(**{"sources": (f"{root}/*/",), "vocab_size": 400, "window": 32, "fim_rate": 0.0, **changes})


def paths(directory: Path, split: str) -> set[str]:
    return {f"{row['project']}/{row['path']}" for row in TokenShards.open(directory, split).documents().to_pylist()}


def texts(directory: Path, split: str) -> list[str]:
    """The documents of a split, put together from its sequences."""
    shards = TokenShards.open(directory, split)
    tokenizer = Tokenizer.from_file(directory).backend
    found = shards.read(np.arange(len(shards)))
    tokens = np.concatenate([found.tokens[0, :1], found.tokens[:, 1:].reshape(-1)])
    numbers = np.concatenate([found.documents[0, :1], found.documents[:, 1:].reshape(-1)])
    ids = [tokens[numbers == number] for number in range(numbers.max() + 1)]
    assert all(document[0] == 0 for document in ids)
    return [tokenizer.decode(document[1:].tolist(), skip_special_tokens=False) for document in ids]


def test_every_file_is_trained_on_or_held_out_whole_projects_at_a_time(projects, tmp_path):
    manifest = build_corpus(config(projects, packing="files"), tmp_path / "c")
    train, held_out = paths(tmp_path / "c", TRAIN), paths(tmp_path / "c", HELD_OUT)
    every = {path.relative_to(projects).as_posix() for path in projects.rglob("*.py")}
    assert train | held_out == every
    assert not train & held_out
    assert {path.split("/")[0] for path in held_out} == set(manifest.held_out.projects)
    assert not set(manifest.train.projects) & set(manifest.held_out.projects)
    assert manifest.split == "projects"
    assert (manifest.train.files, manifest.held_out.files) == (len(train), len(held_out))
    assert manifest.sources[0].kept == 60


def test_the_held_out_side_holds_the_whole_text_of_its_files(projects, tmp_path):
    manifest = build_corpus(config(projects, packing="files"), tmp_path / "c")
    held = sorted(projects / path for path in paths(tmp_path / "c", HELD_OUT))
    assert sorted(texts(tmp_path / "c", HELD_OUT)) == sorted(path.read_text() for path in held)
    assert manifest.held_out.text_bytes == sum(path.stat().st_size for path in held)


def test_training_text_is_missing_at_most_the_end_that_does_not_fill_a_sequence(projects, tmp_path):
    manifest = build_corpus(config(projects, packing="files"), tmp_path / "c")
    found = texts(tmp_path / "c", TRAIN)
    every = {path.read_text() for path in projects.rglob("*.py")}
    assert set(found[:-1]) <= every
    assert any(text.startswith(found[-1]) for text in every)
    assert 0 <= manifest.train.tokens - 1 - 32 * manifest.train.sequences < 32


def test_a_corpus_that_is_built_again_is_the_same_byte_for_byte(projects, tmp_path):
    settings = config(projects, fim_rate=0.5, shard_bytes=4000)
    first, second = (build_corpus(settings, tmp_path / name) for name in "ab")
    assert first == second
    assert len(first.train.shards) > 2
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_held_out_text_is_never_rearranged(projects, tmp_path):
    build_corpus(config(projects, fim_rate=1.0), tmp_path / "c")
    tokens = {split: TokenShards.open(tmp_path / "c", split).read([0, 1]).tokens for split in (TRAIN, HELD_OUT)}
    assert (tokens[TRAIN] == 2).any()
    assert not np.isin(tokens[HELD_OUT], (2, 3, 4)).any()


def test_a_training_file_that_is_like_a_held_out_one_is_dropped(projects, tmp_path):
    plain = build_corpus(config(projects), tmp_path / "plain")
    held = plain.held_out.projects[0]
    root = tmp_path / "more"
    root.mkdir()
    for project in projects.iterdir():
        (root / project.name).symlink_to(project)
    (root / "copier").mkdir()
    copied = (projects / held / "a" / "m1.py").read_text()
    (root / "copier" / "same.py").write_text(copied)
    (root / "copier" / "edited.py").write_text(copied.replace("    return", "  return  ") + "# copied\n")
    (root / "copier" / "own.py").write_text(code("own"))
    manifest = build_corpus(config(root, packing="files"), tmp_path / "c")
    assert held in manifest.held_out.projects
    assert "copier" in manifest.train.projects
    assert {path for path in paths(tmp_path / "c", TRAIN) if path.startswith("copier")} == {"copier/own.py"}
    assert manifest.sources[0].dropped == {"like a held-out file": 2}


def test_a_single_project_is_split_by_its_folders_and_files(tmp_path):
    root = write_project(tmp_path / "alone", 40)
    manifest = build_corpus(config(root, sources=(str(root),), packing="files"), tmp_path / "c")
    assert manifest.split == "units"
    assert manifest.train.projects == manifest.held_out.projects == ("alone",)
    assert 1 <= manifest.held_out.files < 10


def test_a_repository_is_packed_with_its_paths_and_borders_are_between_repositories(projects, tmp_path):
    manifest = build_corpus(config(projects), tmp_path / "c")
    assert manifest.train.documents.rows == len(manifest.train.projects)
    for text in texts(tmp_path / "c", HELD_OUT):
        assert text.startswith("<|file_sep|>a/m1.py\n")
        assert text.count("<|file_sep|>") == 5


def test_two_sources_with_a_project_of_the_same_name_are_on_the_same_side_in_documents_of_their_own(projects, tmp_path):
    other = tmp_path / "other"
    for number in range(12):
        write_project(other / f"project{number}", 2, name=f"fork {number}")
    settings = config(projects, sources=(f"{projects}/*/", f"{other}/*/"))
    manifest = build_corpus(settings, tmp_path / "c")
    assert not set(manifest.train.projects) & set(manifest.held_out.projects)
    assert manifest.train.documents.rows == 2 * len(manifest.train.projects)


def test_a_corpus_that_is_there_is_not_built_again(projects, tmp_path, monkeypatch):
    first = build_corpus(config(projects), tmp_path / "c")
    monkeypatch.setattr(build, "open_source", None)
    assert build_corpus(config(projects), tmp_path / "c") == first
    assert find_corpus(config(projects), tmp_path / "c") == first
    assert find_corpus(config(projects), tmp_path / "nothing") is None


def test_what_is_there_otherwise_is_left_alone(projects, tmp_path):
    build_corpus(config(projects), tmp_path / "c")
    with pytest.raises(ValueError, match=r"output: .* holds a corpus of another configuration; delete it or name"):
        build_corpus(config(projects, window=16), tmp_path / "c")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match=r"output: .* holds something other than a corpus"):
        build_corpus(config(projects), tmp_path / "home")
    with pytest.raises(ValueError, match="something other"):
        build_corpus(config(projects), tmp_path / "home" / "thesis.txt")
    assert (tmp_path / "home" / "thesis.txt").read_text() == "precious"


def test_an_empty_directory_becomes_the_corpus(projects, tmp_path):
    (tmp_path / "c").mkdir()
    build_corpus(config(projects), tmp_path / "c")
    TokenShards.open(tmp_path / "c").verify()
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == [
        "corpus.json",
        "held-out-00000.arrow",
        "held-out-documents.arrow",
        "tokenizer.json",
        "train-00000.arrow",
        "train-documents.arrow",
    ]


def test_a_build_that_fails_leaves_nothing_and_one_that_was_killed_is_begun_again(projects, tmp_path, monkeypatch):
    def fail(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build, "_trained_tokenizer", fail)
        with pytest.raises(KeyboardInterrupt):
            build_corpus(config(projects), tmp_path / "c")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".c.building").mkdir()  # as a process leaves it that is killed
    (tmp_path / ".c.building" / "train-00007.arrow").write_bytes(b"half")
    build_corpus(config(projects), tmp_path / "c")
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    assert not (tmp_path / "c" / "train-00007.arrow").exists()


def test_two_processes_do_not_build_the_same_corpus_at_once(projects, tmp_path):
    with build._building(tmp_path / "c") as directory:
        (directory / "train-00000.arrow").write_bytes(b"theirs")
        with pytest.raises(ValueError, match=r"output: another process is building .*/c; wait for it or name another"):
            build_corpus(config(projects), tmp_path / "c")
        assert [path.name for path in directory.iterdir()] == ["train-00000.arrow"]


@pytest.fixture
def given_tokenizer(tmp_path) -> Path:
    """A tokenizer with more tokens than 16 bits number and none of the special ones but that which ends a text."""
    words = {"<|endoftext|>": 0, **{f"w{number}": number for number in range(1, 70_000)}}
    path = tmp_path / "given" / "tokenizer.json"
    path.parent.mkdir()
    BpeTokenizer(models.WordLevel(words, unk_token="w69999")).save(str(path))
    return path


def test_a_given_tokenizer_without_special_tokens_is_used_with_paths_as_comments(projects, given_tokenizer, tmp_path):
    manifest = build_corpus(config(projects, tokenizer=given_tokenizer), tmp_path / "c")
    assert manifest.vocab_size == 70_000
    shards = TokenShards.open(tmp_path / "c")
    assert shards.read([0]).tokens.max() == 69_999
    assert Tokenizer.from_file(tmp_path / "c").vocab_size == 70_000
    held = TokenShards.open(tmp_path / "c", HELD_OUT)
    last = held.read([len(held) - 1])
    assert (last.tokens[last.documents == PADDING] == 0).all()


def test_a_given_tokenizer_without_its_tokens_refuses_fill_in_the_middle_before_anything_is_read(
    projects, given_tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setattr(build, "open_source", None)
    with pytest.raises(ValueError, match=r"fim_rate: 0\.5 needs tokens for fill-in-the-middle"):
        build_corpus(config(projects, tokenizer=given_tokenizer.parent, fim_rate=0.5), tmp_path / "c")
    with pytest.raises(ValueError, match="tokenizer: no file"):
        build_corpus(config(projects, tokenizer=tmp_path / "no" / "tokenizer.json"), tmp_path / "c")


def test_another_tokenizer_in_the_same_file_is_another_configuration(projects, given_tokenizer, tmp_path):
    settings = config(projects, tokenizer=given_tokenizer)
    build_corpus(settings, tmp_path / "c")
    assert find_corpus(config(projects, tokenizer=given_tokenizer.parent), tmp_path / "c")
    small_bpe().save(str(given_tokenizer))
    with pytest.raises(ValueError, match="another configuration"):
        find_corpus(settings, tmp_path / "c")


def test_the_tokenizer_learns_from_training_files_alone(projects, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(build, "train_bpe", lambda texts, size: seen.extend(texts) or small_bpe())
    manifest = build_corpus(config(projects), tmp_path / "c")
    held = {path.read_text() for name in manifest.held_out.projects for path in (projects / name).rglob("*.py")}
    assert len(seen) == manifest.train.files
    assert not held & set(seen)


def test_too_little_to_train_on_is_refused_with_the_reasons(projects, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"sources: no file is usable \(left out: 0 nothing\)"):
        build_corpus(config(tmp_path, sources=(str(tmp_path / "empty"),)), tmp_path / "c")
    (tmp_path / "empty" / "a.txt").write_text("x")
    with pytest.raises(ValueError, match=r"\(left out: 1 other suffix\); check `sources` and `suffixes`"):
        build_corpus(config(tmp_path, sources=(str(tmp_path / "empty"),)), tmp_path / "c")
    (tmp_path / "empty" / "a.py").write_text(code("a"))
    with pytest.raises(ValueError, match="there are 1 usable files, too few to hold any out"):
        build_corpus(config(tmp_path, sources=(str(tmp_path / "empty"),)), tmp_path / "c")
    with pytest.raises(ValueError, match=r"window: 1000000 tokens and one more do not fit into the \d+ tokens"):
        build_corpus(config(projects, window=10**6), tmp_path / "c")
    (tmp_path / "empty" / "b.py").write_text(code("a") + "# copied\n")
    with pytest.raises(ValueError, match="every file is like a held-out one"):
        build_corpus(config(tmp_path, sources=(str(tmp_path / "empty"),)), tmp_path / "c")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": ()}, "sources: none is given"),
        ({"sources": ("stdlib", "stdlib")}, "sources: 'stdlib' is given twice"),
        ({"sources": ("debian:",)}, "names no package"),
        ({"suffixes": ("py",)}, "suffixes: 'py' is no end of a file name; write it with its dot"),
        ({"suffixes": ()}, "suffixes: none is given"),
        ({"packing": "all"}, "packing: 'all' is unknown; use one of files, repositories"),
        ({"split": "files"}, "split: 'files' is unknown; use one of auto, projects, units"),
        ({"fim_rate": 1.5}, r"fim_rate: 1\.5 is no share"),
        ({"held_out_share": 0.0}, r"held_out_share: 0\.0 leaves one side empty"),
        ({"similarity": 0.0}, r"similarity: 0\.0 is no Jaccard index"),
        ({"window": 1}, "window: 1 is too small; use at least 2"),
        ({"vocab_size": 100}, "vocab_size: 100 is too small; use at least 300"),
        ({"seed": -1}, "seed: -1 is too small"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        CorpusConfig(**changes)

from __future__ import annotations

import os

import pytest

from cluster.batch.paths import Use, check_apart, check_writable, model_files


@pytest.fixture
def folder(tmp_path):
    """A folder with a file, a link and a hard link to it, and links to itself."""
    (tmp_path / "file").write_text("precious")
    (tmp_path / "link").symlink_to("file")
    os.link(tmp_path / "file", tmp_path / "hard")
    (tmp_path / "here").symlink_to(".")
    return tmp_path


@pytest.mark.parametrize("name", ["file", "link", "hard", "here/file", "here/../FOLDER/link"])
def test_a_file_that_is_read_is_not_written_whatever_it_is_called(folder, name):
    path = folder / name.replace("FOLDER", folder.name)
    with pytest.raises(ValueError, match=rf"output: .*{path.name} is the input; give another file"):
        check_apart([Use("input", folder / "file", "the input")], [Use("output", path, "the output")])


@pytest.mark.parametrize("names", [("new", "new"), ("new", "here/new"), ("file", "hard")])
def test_a_file_is_not_written_as_two(folder, names):
    first, second = (folder / name for name in names)
    with pytest.raises(ValueError, match=r"trace: .* is the output; give another file"):
        check_apart([], [Use("output", first, "the output"), Use("trace", second, "the trace")])


def test_different_files_are_let_through(folder):
    read = [Use("input", folder / "file", "the input"), Use("input", folder / "none", "the input")]
    check_apart(read, [Use("output", folder / "out", "the output"), Use("trace", folder / "trace", "the trace")])


def test_files_of_a_model_count_as_read(tmp_path):
    for name in ("config.json", "a.safetensors", "memory/engram.1/00000.arrow", "out.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    for name in ("config.json", "a.safetensors", "memory/engram.1/00000.arrow"):
        with pytest.raises(ValueError, match=f"trace: .*{name} is a file of the model"):
            check_apart(model_files(tmp_path), [Use("trace", tmp_path / name, "the trace")])
    check_apart(model_files(tmp_path), [Use("output", tmp_path / "out.jsonl", "the output")])


@pytest.mark.parametrize(
    ("name", "kind"), [(".", "a directory"), ("pipe", "a pipe"), ("/dev/full", "a device"), ("/dev/null", "a device")]
)
def test_what_is_no_regular_file_is_not_written(tmp_path, name, kind):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match=f"output: .* is {kind}, not a file"):
        check_writable(Use("output", tmp_path / name, "the output"))
    check_writable(Use("output", tmp_path / "new", "the output"))

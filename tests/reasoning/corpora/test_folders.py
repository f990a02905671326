"""Folders, globs and the standard library as sources."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from reasoning.corpora.cleaning import label
from reasoning.corpora.sources.open_source import open_source
from reasoning.corpora.sources.parse import SourceName, parse_source


def files_of(source, tmp_path):
    version, entries = open_source(str(source), tmp_path / "cache")
    assert version is None
    return [(entry.project, entry.path, entry.read() if entry.regular else None) for entry in entries]


def test_a_folder_is_a_project_and_its_files_come_in_order_byte_for_byte(tmp_path):
    (tmp_path / "proj" / "b").mkdir(parents=True)
    (tmp_path / "proj" / "b" / "x.py").write_bytes(b"a\r\nb\r")
    (tmp_path / "proj" / "z.py").write_bytes(b"\xff")
    (tmp_path / "proj" / "c.py").write_bytes(b"c")
    assert files_of(tmp_path / "proj", tmp_path) == [
        ("proj", "c.py", b"c"),
        ("proj", "z.py", b"\xff"),
        ("proj", "b/x.py", b"a\r\nb\r"),
    ]


def test_links_are_reported_and_not_followed(tmp_path):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "s.py").write_text("secret")
    (tmp_path / "proj").mkdir()
    (tmp_path / "proj" / "folder").symlink_to(tmp_path / "secret")
    (tmp_path / "proj" / "file.py").symlink_to(tmp_path / "secret" / "s.py")
    os.mkfifo(tmp_path / "proj" / "pipe.py")
    assert files_of(tmp_path / "proj", tmp_path) == [("proj", "file.py", None), ("proj", "pipe.py", None)]


def test_a_file_name_that_is_no_text_is_read_and_has_a_printable_label(tmp_path):
    (tmp_path / "proj").mkdir()
    with open(os.fsencode(tmp_path / "proj") + b"/caf\xe9\n.py", "wb") as file:
        file.write(b"x")
    [(_, path, content)] = files_of(tmp_path / "proj", tmp_path)
    assert content == b"x"
    assert label(path) == "caf\ufffd\ufffd.py"
    assert label("ordner/größe 1.py") == "ordner/größe 1.py"


def test_every_folder_that_a_glob_matches_is_a_project_named_after_what_the_wildcards_stand_for(tmp_path):
    for name in ("one/src", "two/src", "two/docs"):
        (tmp_path / "work" / name).mkdir(parents=True)
        (tmp_path / "work" / name / "m.py").write_bytes(name.encode())
    (tmp_path / "work" / "no-folder").write_bytes(b"")
    assert files_of(tmp_path / "work" / "*/", tmp_path) == [
        ("one", "src/m.py", b"one/src"),
        ("two", "docs/m.py", b"two/docs"),
        ("two", "src/m.py", b"two/src"),
    ]
    assert files_of(tmp_path / "work" / "*" / "src", tmp_path) == [
        ("one/src", "m.py", b"one/src"),
        ("two/src", "m.py", b"two/src"),
    ]


def test_a_tilde_is_the_home_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "src" / "proj").mkdir(parents=True)
    (tmp_path / "src" / "proj" / "m.py").write_bytes(b"m")
    assert files_of("~/src/proj", tmp_path) == files_of("~/src/*", tmp_path) == [("proj", "m.py", b"m")]


def test_the_standard_library_is_that_of_the_interpreter(tmp_path):
    _, entries = open_source("stdlib", tmp_path)
    found = next(entry for entry in entries if entry.path == "argparse.py")
    assert found.project == "stdlib"
    assert found.read() == (Path(os.__file__).parent / "argparse.py").read_bytes()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere/at/all", "nowhere/at/all is not a folder"),
        ("nowhere/*/", r"no folder matches 'nowhere/\*/'"),
        ("debian:-o=Dir", "names no package; write it as debian:"),
        ("debian:hello=", "names no package"),
        ("debian:Hello", "names no package"),
        ("pypi:", "names no package; write it as pypi:"),
        ("pypi:a/../b", "names no package"),
        ("pypi:six=1.0", "names no package"),
        ("", "is no path"),
    ],
)
def test_a_source_that_does_not_exist_or_is_misspelt_is_named(source, message, tmp_path):
    with pytest.raises(ValueError, match=f"^sources: .*{message}"):
        list(open_source(source, tmp_path)[1])


def test_names_and_versions_of_packages_are_taken_apart():
    assert parse_source("debian:libc++=1:2.3~rc1-1+b2") == SourceName(
        "debian:libc++=1:2.3~rc1-1+b2", "debian", "libc++", "1:2.3~rc1-1+b2"
    )
    assert parse_source("pypi:Zope.Interface==1!2.0a1") == SourceName(
        "pypi:Zope.Interface==1!2.0a1", "pypi", "Zope.Interface", "1!2.0a1"
    )
    assert parse_source("pypi:six").version is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_cannot_be_listed_does_not_go_missing_unnoticed(tmp_path):
    (tmp_path / "proj" / "closed").mkdir(parents=True)
    (tmp_path / "proj" / "closed").chmod(0)
    with pytest.raises(PermissionError):
        files_of(tmp_path / "proj", tmp_path)

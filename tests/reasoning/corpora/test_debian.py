"""Debian source packages, with an apt-get that the tests play."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from reasoning.corpora.sources import debian
from reasoning.corpora.sources.debian import debian_files
from reasoning.corpora.sources.parse import parse_source

from .material import tar_of

SYSTEM = {
    "sources.list": "# comment\ndeb [signed-by=/k] http://a stable main\ndeb-src http://a stable main\n",
    "sources.list.d/new.sources": "Types: deb deb-src\nURIs: http://b\nSuites: stable\nSigned-By: /k\n",
    "sources.list.d/old.list.disabled": "deb http://c stable main\n",
}


class FakeApt:
    """apt-get, which knows one package."""

    def __init__(self, error: str = "") -> None:
        self.error, self.commands = error, []

    def __call__(self, command, folder: Path):
        self.commands.append(command)
        if command[-1] == "update":
            (folder / "lists" / "x_main_source_Sources.lz4").write_bytes(b"")
            return subprocess.CompletedProcess(command, 0, "", "")
        (folder / "hello_2.10-3.dsc").write_text("Format: 3.0 (quilt)\nVersion: 2.10-3\nFiles:\n")
        tar_of(folder / "hello_2.10.orig.tar.gz", {"hello-2.10/src/a.c": b"int a;\n"})
        tar_of(folder / "hello_2.10.orig-extra.tar.xz", {"extra-1/b.c": b"int b;\n"}, "w:xz")
        tar_of(folder / "hello_2.10-3.debian.tar.xz", {"debian/rules.py": b"x"}, "w:xz")
        (folder / "hello_2.10.orig.tar.gz.asc").write_text("signature")
        return subprocess.CompletedProcess(command, 100 if self.error else 0, "", self.error)


@pytest.fixture(autouse=True)
def system(tmp_path, monkeypatch):
    for name, text in SYSTEM.items():
        path = tmp_path / "etc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(debian, "_SYSTEM", tmp_path / "etc")


def read(source, cache, apt):
    version, entries = debian_files(parse_source(source), cache, apt)
    return version, [(entry.project, entry.path, entry.read()) for entry in entries]


def test_the_upstream_archives_of_a_package_are_its_files(tmp_path):
    version, files = read("debian:hello", tmp_path, FakeApt())
    assert version == "2.10-3"
    assert files == [("hello", "extra/b.c", b"int b;\n"), ("hello", "src/a.c", b"int a;\n")]


def test_the_archive_of_a_package_that_is_native_to_debian_is_read(tmp_path):
    folder = tmp_path / "debian" / "hello=newest"
    folder.mkdir(parents=True)
    (folder / "hello_1.dsc").write_text("Version: 1\n")
    tar_of(folder / "hello_1.tar.xz", {"hello/a.py": b"a"}, "w:xz")
    assert read("debian:hello", tmp_path, FakeApt()) == ("1", [("hello", "a.py", b"a")])


def test_a_package_is_fetched_once_and_by_name_and_version(tmp_path):
    apt = FakeApt()
    read("debian:hello=2.10-3", tmp_path, apt)
    read("debian:hello=2.10-3", tmp_path, apt)
    assert [command[-1] for command in apt.commands] == ["update", "hello=2.10-3"]
    assert {"--download-only", "--only-source"} <= set(apt.commands[-1])
    read("debian:hello", tmp_path, apt)
    assert [command[-1] for command in apt.commands[2:]] == ["hello"]  # the lists are there


def test_apt_get_is_asked_for_sources_of_the_archives_of_the_system_below_the_cache_alone(tmp_path, monkeypatch):
    apt = FakeApt()
    monkeypatch.chdir(tmp_path)
    read("debian:hello", Path("cache"), apt)  # apt-get runs in another folder than we
    lists = tmp_path / "cache" / "apt" / "sources.list.d"
    assert {path.name: path.read_text() for path in lists.iterdir()} == {
        "sources.list": "# comment\ndeb-src [signed-by=/k] http://a stable main\ndeb-src http://a stable main\n",
        "new.sources": "Types: deb-src\nURIs: http://b\nSuites: stable\nSigned-By: /k\n",
    }
    for command in apt.commands:
        assert f"Dir::State::lists={tmp_path / 'cache' / 'apt' / 'lists'}" in command
        assert "Dir::Etc::sourcelist=/dev/null" in command


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("W: x\nE: Unable to find a source package for hello\n", r"\(Unable to find .*\); check name and version"),
        ("E: Failed to fetch http://a  404  Not Found\n", r"\(Failed .*404.*\); check name and version.*newer lists"),
        ("E: Could not resolve 'host'\n", r"\(Could not resolve 'host'\); check the network"),
    ],
)
def test_a_fetch_that_fails_names_the_reason_and_leaves_nothing_under_the_name_of_the_package(error, message, tmp_path):
    with pytest.raises(ValueError, match=f"sources: debian:hello cannot be fetched {message}"):
        read("debian:hello", tmp_path, FakeApt(error))
    assert list((tmp_path / "debian").iterdir()) == []
    assert read("debian:hello", tmp_path, FakeApt())[0] == "2.10-3"


def test_no_list_of_sources_is_an_error_that_says_where_to_look(tmp_path):
    def offline(command, folder):
        return subprocess.CompletedProcess(command, 100, "", "E: no network\n")

    with pytest.raises(ValueError, match=r"no list of Debian's sources can be fetched \(no network\); check network"):
        read("debian:hello", tmp_path, offline)

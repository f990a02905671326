"""Archives of source packages: all kinds are read, hostile ones do no harm, damaged ones are named."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import zipfile

import pytest

from reasoning.corpora.cleaning import Cleaner
from reasoning.corpora.sources import archives
from reasoning.corpora.sources.archives import archive_files

from .material import link, tar_of

FILES = {"six-1.0/setup.py": b"setup\r\n", "six-1.0/six/a.py": b"a", "six-1.0/six/b.py": b"b" * 5000}
FOUND = [("setup.py", b"setup\r\n"), ("six/a.py", b"a"), ("six/b.py", b"b" * 5000)]


def read_all(path):
    return [(entry.path, entry.read()) for entry in archive_files(path, "six") if entry.regular]


def zip_of(path, members, modes=None):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (modes or {}).get(name, 0) << 16
            archive.writestr(info, content, zipfile.ZIP_DEFLATED)
    return path


@pytest.mark.parametrize("packing", ["", "gz", "bz2", "xz"])
def test_tarballs_of_every_packing_are_read_and_the_folder_around_everything_is_left_out(packing, tmp_path):
    assert read_all(tar_of(tmp_path / "any.name", FILES, f"w:{packing}")) == FOUND


def test_zip_files_are_read(tmp_path):
    assert read_all(zip_of(tmp_path / "any.name", FILES)) == FOUND


def test_an_archive_without_a_folder_around_everything_keeps_its_paths(tmp_path):
    files = {"setup.py": b"s", "six/a.py": b"a"}
    assert read_all(tar_of(tmp_path / "a.tar.gz", files)) == list(files.items())


def test_content_that_nobody_reads_does_not_disturb_what_follows(tmp_path):
    path = tar_of(tmp_path / "a.tar.gz", FILES)
    assert [entry.read() for entry in archive_files(path, "six") if entry.path == "six/b.py"] == [b"b" * 5000]


HOSTILE = {
    "p-1/good.py": b"good = 1\n",
    "../escape.py": b"x = 1\n",
    "p-1/../../escape.py": b"x = 2\n",
    "/tmp/absolute.py": b"x = 3\n",
    "p-1/back\\..\\slash.py": b"x = 4\n",
    "p-1/symbolic.py": link(tarfile.SYMTYPE, "/etc/passwd"),
    "p-1/hard.py": link(tarfile.LNKTYPE, "p-1/good.py"),
    "p-1/device.py": link(tarfile.CHRTYPE, ""),
    "p-1/pipe.py": link(tarfile.FIFOTYPE, ""),
    "p-1/last.py": b"last = 1\n",
}


def judged(path):
    cleaner = Cleaner((".py",), 1000)
    return {entry.path: cleaner.text_of(entry) for entry in archive_files(path, "p")}


def test_members_that_would_escape_and_links_and_devices_are_left_out_with_a_reason(tmp_path):
    before = sorted(os.listdir(tmp_path))
    found = judged(tar_of(tmp_path / "a.tar.gz", HOSTILE))
    assert {path: text for path, (text, reason) in found.items() if not reason} == {
        "good.py": "good = 1\n",
        "last.py": "last = 1\n",
    }
    reasons = [reason for _, reason in found.values() if reason]
    assert reasons.count("unsafe path") == 4
    assert reasons.count("link or device") == 4
    assert sorted(os.listdir(tmp_path)) == [*before, "a.tar.gz"]  # nothing is unpacked to disk


@pytest.mark.parametrize("first", ["../escape.py", "/tmp/absolute.py"])
def test_a_path_that_would_escape_is_not_taken_for_the_folder_around_everything(first, tmp_path):
    found = judged(tar_of(tmp_path / "a.tar", {first: b"x = 1\n", "p/good.py": b"x = 2\n"}, "w"))
    assert found == {first: ("", "unsafe path"), "p/good.py": ("x = 2\n", "")}


def test_links_and_escapes_of_a_zip_are_left_out_too(tmp_path):
    members = {"p/good.py": b"x = 1\n", "p/../../e.py": b"x", "p/link.py": b"/etc/passwd"}
    found = judged(zip_of(tmp_path / "a.zip", members, {"p/link.py": stat.S_IFLNK | 0o777}))
    assert [reason for _, reason in found.values()] == ["", "unsafe path", "link or device"]


@pytest.fixture
def small_limit(monkeypatch):
    monkeypatch.setattr(archives, "FREE_BYTES", 1 << 16)


def test_an_archive_that_unpacks_to_far_more_than_source_code_is_refused(tmp_path, small_limit):
    bomb = {"a/x.py": b"\0" * (1 << 22)}
    for path in (tar_of(tmp_path / "a.tar.gz", bomb), zip_of(tmp_path / "a.zip", bomb)):
        with pytest.raises(ValueError, match=rf"sources: {path} is refused: it unpacks to more than \d+,\d+ bytes"):
            list(archive_files(path, "a"))


def test_a_bomb_in_the_names_of_an_archive_is_refused_before_it_is_held_in_memory(tmp_path, small_limit):
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("x.py")
        member.pax_headers = {"comment": "a" * (1 << 22)}
        archive.addfile(member, io.BytesIO(b""))
    with pytest.raises(ValueError, match="is refused"):
        list(archive_files(path, "a"))


@pytest.mark.parametrize("make", [tar_of, zip_of])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_damaged_archive_is_named_with_what_to_do(make, share, tmp_path):
    whole = make(tmp_path / "whole", {f"p/{n}.py": os.urandom(20000) for n in range(5)}).read_bytes()
    path = tmp_path / "cut.tar.gz"
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ValueError, match=r"sources: .*cut\.tar\.gz is damaged \(.+\); delete it"):
        read_all(path)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"\x1f\x8b\x08\0garbage" * 100])
def test_what_is_no_archive_is_named(content, tmp_path):
    (tmp_path / "x.tar.gz").write_bytes(content)
    with pytest.raises(ValueError, match=r"sources: .*x\.tar\.gz is damaged"):
        read_all(tmp_path / "x.tar.gz")

"""Source distributions from an index that the tests serve on this machine."""

from __future__ import annotations

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from reasoning.corpora.sources import index_settings
from reasoning.corpora.sources.index_settings import IndexSettings
from reasoning.corpora.sources.parse import parse_source
from reasoning.corpora.sources.pypi import pypi_files

from .material import tar_of


class Index:
    """A package index."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.pages, self.asked = folder, {}, []
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                index.asked.append(self.path)
                content = index.pages.get(self.path)
                self.send_response(404 if content is None else 200)
                self.end_headers()
                self.wfile.write(content or b"")

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.settings = IndexSettings(f"http://127.0.0.1:{self.server.server_address[1]}/simple")
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def offer(self, name: str, *files: str, digest: str | None = "right", marks: str = "") -> None:
        """Put archives on the page of a package."""
        for file in files:
            stem = file.removesuffix(".tar.gz")
            path = tar_of(self.folder / file, {f"{stem}/setup.py": b"raise SystemExit('executed')\n"})
            self.pages[f"/files/{file}"] = path.read_bytes()
            right = hashlib.sha256(path.read_bytes()).hexdigest()
            fragment = {"right": f"#sha256={right}", "wrong": f"#sha256={'0' * 64}", None: ""}[digest]
            link = f'<a href="../../files/{file}{fragment}" {marks}>{file}</a>\n'
            self.pages[f"/simple/{name}/"] = self.pages.get(f"/simple/{name}/", b"") + link.encode()


@pytest.fixture
def index(tmp_path):
    (tmp_path / "index").mkdir()
    index = Index(tmp_path / "index")
    yield index
    index.server.shutdown()
    index.server.server_close()


def read(source, cache, index):
    version, entries = pypi_files(parse_source(source), cache, index.settings)
    return version, [(entry.project, entry.path, entry.read()) for entry in entries]


SETUP = [("my-lib", "setup.py", b"raise SystemExit('executed')\n")]


def test_the_newest_version_that_is_no_pre_release_and_not_withdrawn_is_read_and_not_executed(index, tmp_path):
    index.offer("my-lib", "my_lib-1.9.tar.gz", "my_lib-1.10.tar.gz", "my_lib-2.0rc1.tar.gz", "other-9.tar.gz")
    index.offer("my-lib", "my_lib-1.11.tar.gz", marks='data-yanked="broken"')
    index.pages["/simple/my-lib/"] += b'<a href="/files/my_lib-3.0-py3-none-any.whl">wheel</a>'
    assert read("pypi:My.Lib", tmp_path, index) == ("1.10", SETUP)


def test_the_version_that_is_asked_for_is_read_also_if_it_is_withdrawn(index, tmp_path):
    index.offer("my-lib", "my_lib-1.9.tar.gz", "my_lib-1.10.tar.gz", digest=None)
    index.offer("my-lib", "my_lib-1.11.tar.gz", marks="data-yanked")
    assert read("pypi:my-lib==1.9.0", tmp_path, index) == ("1.9", SETUP)
    assert read("pypi:my-lib==1.11", tmp_path, index) == ("1.11", SETUP)


def test_a_package_of_pre_releases_alone_is_read(index, tmp_path):
    index.offer("my-lib", "my_lib-1.0a1.tar.gz", "my_lib-1.0a2.tar.gz")
    assert read("pypi:my-lib", tmp_path, index)[0] == "1.0a2"


def test_a_package_that_is_in_the_cache_needs_no_network(index, tmp_path):
    index.offer("my-lib", "my_lib-1.0.tar.gz")
    first = read("pypi:my-lib", tmp_path, index)
    asked = list(index.asked)
    index.offer("my-lib", "my_lib-2.0.tar.gz")
    assert read("pypi:my-lib", tmp_path, index) == first
    assert index.asked == asked


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("pypi:missing", "sources: the index knows no package 'missing'"),
        ("pypi:my-lib==7", r"pypi:my-lib==7 has no source distribution in the index; the last versions are 1\.0"),
        ("pypi:my-lib==x", "names no version"),
        ("pypi:wheels", "pypi:wheels has no source distribution in the index; leave it out"),
        ("pypi:wrong", r"wrong-1\.0\.tar\.gz arrived damaged: its SHA-256 is not the index's"),
        ("pypi:gone", r"pypi:gone cannot be fetched \(HTTPError\); check the network"),
    ],
)
def test_what_cannot_be_fetched_is_named_and_leaves_nothing_in_the_cache(source, message, index, tmp_path):
    index.offer("my-lib", "my_lib-1.0.tar.gz")
    index.offer("wrong", "wrong-1.0.tar.gz", digest="wrong")
    index.pages["/simple/wheels/"] = b'<a href="/files/wheels-3.0-py3-none-any.whl">wheel</a>'
    index.pages["/simple/gone/"] = b'<a href="/files/gone-3.0.tar.gz">sdist</a>'
    with pytest.raises(ValueError, match=message):
        read(source, tmp_path, index)
    assert list((tmp_path / "pypi").iterdir()) == []


def test_an_index_that_does_not_answer_is_reported_without_the_password_in_its_address(tmp_path):
    settings = IndexSettings("http://user:secret@127.0.0.1:1/simple")
    with pytest.raises(ValueError, match=r"pypi:six cannot be fetched \(ConnectionError\)") as caught:
        pypi_files(parse_source("pypi:six"), tmp_path, settings)
    assert "secret" not in str(caught.value)


@pytest.fixture
def pip_says(monkeypatch):
    def say(listing, help_text="  -i, --index-url <url>  Base URL (default https://example.org/simple). x"):
        monkeypatch.setattr(index_settings, "_pip", lambda first, *rest: listing if first == "config" else help_text)

    return say


def test_the_index_is_that_of_pips_environment_before_that_of_its_files(pip_says):
    pip_says(":env:.index-url='https://env.example/s/'\nglobal.index-url='https://file.example/s'\nglobal.cert='/ca'\n")
    assert index_settings.index_settings() == IndexSettings("https://env.example/s", "/ca")
    pip_says("global.index-url='https://global.example/s'\ndownload.index-url='https://download.example/s'\n")
    assert index_settings.index_settings() == IndexSettings("https://download.example/s", None)


def test_without_settings_it_is_pips_default(pip_says):
    pip_says("")
    assert index_settings.index_settings() == IndexSettings("https://example.org/simple", None)


def test_an_index_that_is_no_web_address_is_refused(pip_says):
    pip_says("global.index-url='file:///mirror/simple'\n")
    with pytest.raises(ValueError, match="pip's index 'file:///mirror/simple' is no web address"):
        index_settings.index_settings()


def test_the_installed_pip_tells_its_index(monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    assert index_settings.index_settings().url == "http://127.0.0.1:9/simple"
    assert index_settings._default_index(index_settings._pip("download", "--help")) == "http://127.0.0.1:9/simple"

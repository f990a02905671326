"""Source distributions of Python packages, found in the index that pip uses.

`pip download` would execute a package's build script to learn its metadata. Here the index's page of the package is
read (PEP 503) and the archive is fetched, checked against the SHA-256 that the page states, and only ever read.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import requests
from packaging.utils import InvalidSdistFilename, canonicalize_name, parse_sdist_filename
from packaging.version import InvalidVersion, Version

from reasoning.corpora.sources.archives import archive_files
from reasoning.corpora.sources.download_cache import fetched
from reasoning.corpora.sources.entry import Entry
from reasoning.corpora.sources.index_settings import IndexSettings, index_settings
from reasoning.corpora.sources.parse import SourceName

_TIMEOUT_S = 60
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Sdist:
    """A source distribution that an index offers."""

    file: str
    version: Version
    url: str
    sha256: str | None
    """None if the index states none."""
    yanked: bool
    """Withdrawn by its authors; taken only if exactly this version is asked for (PEP 592)."""


def pypi_files(source: SourceName, cache: Path, index: IndexSettings | None = None) -> tuple[str, Iterator[Entry]]:
    """Fetch a package's source distribution unless it is in the cache, and yield its files.

    Args:
        source: name and version of the package.
        cache: folder of downloads.
        index: where to look for it; None for the index that pip uses.

    Returns:
        Version of the package, and its files.

    Raises:
        ValueError: the package, the version or a source distribution of it does not exist, the network fails, or the
            archive is damaged.
    """
    name = canonicalize_name(source.name)
    folder = cache / "pypi" / f"{name}=={source.version or 'newest'}"
    fetched(folder, lambda unfinished: _fetch(source, name, index or index_settings(), unfinished))
    archives = list(folder.iterdir())
    if len(archives) != 1:
        raise ValueError(
            f"sources: {folder} holds {len(archives)} files instead of an archive; delete it and try again"
        )
    return str(parse_sdist_filename(archives[0].name)[1]), archive_files(archives[0], name)


def _fetch(source: SourceName, name: str, index: IndexSettings, folder: Path) -> None:
    with requests.Session() as session:
        session.verify = index.certificates or True
        try:
            sdist = _choose(source, _offered(session, source, f"{index.url}/{name}/", name))
            _download(session, sdist, folder / sdist.file)
        except requests.RequestException as error:
            reason = type(error).__name__  # the text of the error may hold a password of the index's address
            raise ValueError(
                f"sources: {source.text} cannot be fetched ({reason}); check the network and pip's index"
            ) from error


def _offered(session: requests.Session, source: SourceName, url: str, name: str) -> list[Sdist]:
    response = session.get(url, headers={"Accept": "text/html"}, timeout=_TIMEOUT_S)
    if response.status_code == requests.codes.not_found:
        raise ValueError(f"sources: the index knows no package {source.name!r}; check the name in {source.text}")
    response.raise_for_status()
    page = _Page()
    page.feed(response.text)
    links = (_sdist(urljoin(response.url, href), yanked, name) for href, yanked in page.links)
    return [sdist for sdist in links if sdist is not None]


class _Page(HTMLParser):
    """The page of a package: its links, and whether they are yanked."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[tuple[str, bool]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take up a link."""
        attributes = dict(attrs)
        if tag == "a" and (href := attributes.get("href")):
            self.links.append((href, "data-yanked" in attributes))


def _sdist(url: str, yanked: bool, name: str) -> Sdist | None:
    """Return the source distribution that a link leads to; None for wheels and other files."""
    address, fragment = urldefrag(url)
    file = unquote(urlsplit(address).path.rpartition("/")[2])
    try:
        stem, version = parse_sdist_filename(file)
    except (InvalidSdistFilename, InvalidVersion):
        return None
    digest = re.fullmatch(r"sha256=([0-9a-f]{64})", fragment)
    return Sdist(file, version, address, digest and digest[1], yanked) if stem == name else None


def _choose(source: SourceName, offered: list[Sdist]) -> Sdist:
    """Return the version asked for, or the newest: no pre-release or yanked one if there is any other."""
    if not offered:
        raise ValueError(f"sources: {source.text} has no source distribution in the index; leave it out")
    if source.version is None:
        return max(offered, key=lambda sdist: (not sdist.yanked, not sdist.version.is_prerelease, sdist.version))
    for sdist in offered:
        if sdist.version == _version(source):
            return sdist
    known = ", ".join(str(sdist.version) for sdist in sorted(offered, key=lambda sdist: sdist.version)[-5:])
    raise ValueError(f"sources: {source.text} has no source distribution in the index; the last versions are {known}")


def _version(source: SourceName) -> Version:
    try:
        return Version(source.version or "")
    except InvalidVersion as error:
        raise ValueError(f"sources: {source.text} names no version; write it as pypi:tomli==2.0.1") from error


def _download(session: requests.Session, sdist: Sdist, target: Path) -> None:
    digest = hashlib.sha256()
    with session.get(sdist.url, stream=True, timeout=_TIMEOUT_S) as response, target.open("wb") as file:
        response.raise_for_status()
        for chunk in response.iter_content(_CHUNK_BYTES):
            digest.update(chunk)
            file.write(chunk)
    if sdist.sha256 not in (None, digest.hexdigest()):
        raise ValueError(f"sources: {sdist.file} arrived damaged: its SHA-256 is not the index's; try again")

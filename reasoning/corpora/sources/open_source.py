"""A source by its name: where its files come from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from reasoning.corpora.sources.debian import debian_files
from reasoning.corpora.sources.entry import Entry
from reasoning.corpora.sources.folders import folder_files, glob_files, stdlib_files
from reasoning.corpora.sources.parse import parse_source
from reasoning.corpora.sources.pypi import pypi_files


def open_source(text: str, cache: Path) -> tuple[str | None, Iterator[Entry]]:
    """Find a source, fetching a package that is not in the cache.

    Args:
        text: the source, as `parse_source` takes it apart.
        cache: folder of downloads.

    Returns:
        Version of a package (None for folders), and the files, in an order that repeats.

    Raises:
        ValueError: the source does not exist or cannot be fetched.
    """
    source = parse_source(text)
    if source.kind == "debian":
        return debian_files(source, cache)
    if source.kind == "pypi":
        return pypi_files(source, cache)
    if source.kind == "stdlib":
        return None, stdlib_files()
    return None, (glob_files if source.kind == "glob" else folder_files)(source.name)

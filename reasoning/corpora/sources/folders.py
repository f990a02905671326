"""Folders as sources: the standard library, a folder, or each folder that a glob matches."""

from __future__ import annotations

import glob
import os
import stat
import sysconfig
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

from reasoning.corpora.sources.entry import Entry
from reasoning.corpora.sources.parse import STDLIB


def stdlib_files() -> Iterator[Entry]:
    """Yield the files of the running interpreter's standard library."""
    return _files(Path(sysconfig.get_path("stdlib")), STDLIB)


def folder_files(name: str) -> Iterator[Entry]:
    """Yield the files of a folder, which is a project with the name of the folder.

    Raises:
        ValueError: there is no such folder.
    """
    root = Path(name).expanduser()
    if not root.is_dir():
        raise ValueError(f"sources: {name} is not a folder; give a folder, a glob, stdlib, debian:NAME or pypi:NAME")
    return _files(root, root.resolve().name or "root")


def glob_files(pattern: str) -> Iterator[Entry]:
    """Yield the files of every folder that a glob matches, each a project.

    Raises:
        ValueError: no folder matches.
    """
    folders = sorted(path for path in glob.glob(os.path.expanduser(pattern), recursive=True) if os.path.isdir(path))
    if not folders:
        raise ValueError(f"sources: no folder matches {pattern!r}; check the pattern, which the shell must not expand")
    for folder in folders:
        yield from _files(Path(folder), _matched(pattern, folder))


def _matched(pattern: str, folder: str) -> str:
    """Return the part of a folder's path from the first part of the pattern on that has a wildcard: ~/src/* -> six."""
    fixed = takewhile(lambda part: not glob.has_magic(part), Path(os.path.expanduser(pattern)).parts)
    return "/".join(Path(folder).parts[len(list(fixed)) :]) or Path(folder).name


def _files(root: Path, project: str) -> Iterator[Entry]:
    """Yield files in the order of their paths. Links are reported and not followed."""
    for folder, folders, names in os.walk(root, onerror=_raise):
        folders.sort()
        for name in sorted(names):
            path = Path(folder, name)
            yield _entry(path, project, path.relative_to(root).as_posix())


def _raise(error: OSError) -> None:
    raise error  # a folder that cannot be listed must not go missing unnoticed


def _entry(path: Path, project: str, below: str) -> Entry:
    status = path.lstat()
    return Entry(project, below, status.st_size, path.read_bytes, stat.S_ISREG(status.st_mode))

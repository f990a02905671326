"""Downloads that are kept: a folder for each package, which appears when all of it is there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def default_cache() -> Path:
    """Return the folder of downloads: below $XDG_CACHE_HOME, or else ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "engram-ray" / "sources"


def fetched(folder: Path, fetch: Callable[[Path], None]) -> Path:
    """Return `folder`; if it does not exist, `fetch` first fills a temporary folder that then takes its name.

    A package that is there is not fetched again, so that a corpus can be built again from the same sources; delete
    its folder for a newer version. A fetch that fails or is killed leaves nothing under the name.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=".fetching-", dir=folder.parent))
    try:
        fetch(unfinished)
        _take_name(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _take_name(unfinished: Path, folder: Path) -> None:
    try:
        unfinished.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process has fetched the same meanwhile
            raise

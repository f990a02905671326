"""Debian source packages, fetched by apt-get, which checks their signatures; the archives are not unpacked to disk."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from reasoning.corpora.sources.archives import archive_files
from reasoning.corpora.sources.download_cache import fetched
from reasoning.corpora.sources.entry import Entry
from reasoning.corpora.sources.parse import SourceName

Runner = Callable[[Sequence[str], Path], "subprocess.CompletedProcess[str]"]
"""Runs a command in a folder."""
_SYSTEM = Path("/etc/apt")
# The package's own archive and further upstream ones; not the distribution's changes (.debian.tar.xz, .diff.gz).
_UPSTREAM = re.compile(r".+\.tar\.(gz|bz2|xz|lzma)")
_COMPONENT = re.compile(r"\.orig-([A-Za-z0-9-]+)\.tar\.")


def run_command(command: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, with its output in English."""
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def debian_files(source: SourceName, cache: Path, run: Runner = run_command) -> tuple[str, Iterator[Entry]]:
    """Fetch a source package unless it is in the cache, and yield the files of its upstream archives.

    The system's package lists need no deb-src lines and are not touched: lists of the same archives, of sources instead
    of binaries, are kept in the cache.

    Args:
        source: name and version of the package.
        cache: folder of downloads.
        run: runs apt-get.

    Returns:
        Version of the package, and its files.

    Raises:
        ValueError: there is no apt-get, no such package or no network, or an archive is damaged.
    """
    folder = cache / "debian" / f"{source.name}={source.version or 'newest'}"
    fetched(folder, lambda unfinished: _fetch(source, cache.absolute() / "apt", unfinished, run))
    archives = sorted(path for path in folder.iterdir() if _is_upstream(path.name))
    if not archives:
        raise ValueError(f"sources: {folder} holds no source archive of {source.text}; delete it and try again")
    return _version(folder), _files(archives, source.name)


def _files(archives: Sequence[Path], project: str) -> Iterator[Entry]:
    for archive in archives:
        component = _COMPONENT.search(archive.name)
        below = f"{component[1]}/" if component else ""
        for entry in archive_files(archive, project):
            yield Entry(project, below + entry.path, entry.size, entry.read, entry.regular)


def _is_upstream(name: str) -> bool:
    return bool(_UPSTREAM.fullmatch(name)) and ".debian.tar." not in name


def _version(folder: Path) -> str:
    """Return the version that the package's description, a .dsc file, states."""
    for description in folder.glob("*.dsc"):
        if found := re.search(r"^Version: *(\S+)", description.read_text("utf-8", "replace"), re.M):
            return found[1]
    raise ValueError(f"sources: {folder} holds no .dsc file with a version; delete it and try again")


def _fetch(source: SourceName, apt: Path, folder: Path, run: Runner) -> None:
    if run is run_command and not shutil.which("apt-get"):
        raise ValueError(f"sources: {source.text} needs apt-get; use a Debian or Ubuntu system")
    options = _options(apt)
    if not any((apt / "lists").glob("*Sources*")):
        _lists(apt, options, run)
    package = source.name if source.version is None else f"{source.name}={source.version}"
    done = run(["apt-get", *options, "source", "--download-only", "--only-source", package], folder)
    if done.returncode:
        reason, remedy = _reason(done.stderr), _remedy(done.stderr, apt)
        raise ValueError(f"sources: {source.text} cannot be fetched ({reason}); {remedy}")


def _options(apt: Path) -> list[str]:
    """Return options that make apt-get work below a folder of ours, whoever runs it."""
    settings = {
        "Dir::Etc::sourcelist": "/dev/null",
        "Dir::Etc::sourceparts": apt / "sources.list.d",
        "Dir::State::lists": apt / "lists",
        "Dir::Cache": apt / "cache",
        "APT::Sandbox::User": "",  # the user _apt has no access to our folder
    }
    return [part for key, value in settings.items() for part in ("-o", f"{key}={value}")]


def _lists(apt: Path, options: Sequence[str], run: Runner) -> None:
    """Fetch lists of the source packages in the archives that the system takes its packages from."""
    for folder in ("sources.list.d", "lists/partial", "cache/archives/partial"):
        (apt / folder).mkdir(parents=True, exist_ok=True)
    for file in [_SYSTEM / "sources.list", *sorted((_SYSTEM / "sources.list.d").glob("*"))]:
        if file.suffix in (".list", ".sources") and file.is_file():
            (apt / "sources.list.d" / file.name).write_text(_of_sources(file.read_text()))
    done = run(["apt-get", *options, "update"], apt)
    if not any((apt / "lists").glob("*Sources*")):
        reason = _reason(done.stderr)
        raise ValueError(f"sources: no list of Debian's sources can be fetched ({reason}); check network and {_SYSTEM}")


def _of_sources(text: str) -> str:
    """Return a list of package archives that asks for sources only, in one-line or deb822 style."""
    return re.sub(r"^deb(?=\s)", "deb-src", re.sub(r"^Types:.*$", "Types: deb-src", text, flags=re.M), flags=re.M)


def _reason(errors: str) -> str:
    """Return the first error that apt-get printed."""
    lines = [line.removeprefix("E: ") for line in errors.splitlines() if line.startswith("E: ")]
    return next(iter(lines or errors.splitlines()), "apt-get gives no reason")


def _remedy(errors: str, apt: Path) -> str:
    if any(sign in errors for sign in ("Unable to find a source package", "Can not find version", "404")):
        return f"check name and version, or delete {apt} so that newer lists are fetched"
    return "check the network"

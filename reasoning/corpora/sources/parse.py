"""What a source is called on the command line."""

from __future__ import annotations

import glob
import re
from dataclasses import dataclass
from typing import Literal

STDLIB = "stdlib"
Kind = Literal["stdlib", "folder", "glob", "debian", "pypi"]
_DEBIAN = re.compile(r"([a-z0-9][a-z0-9+.-]+)(?:=([0-9][A-Za-z0-9.+:~-]*))?")  # Debian policy 5.6.1 and 5.6.12
_PYPI = re.compile(r"([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)(?:==([A-Za-z0-9.!+_-]+))?")  # PEP 508


@dataclass(frozen=True)
class SourceName:
    """A source, taken apart."""

    text: str
    """The source as the user wrote it."""
    kind: Kind
    name: str
    """Name of the package, path of the folder or pattern of folders."""
    version: str | None = None
    """Version of the package; None for the newest one."""


def parse_source(text: str) -> SourceName:
    """Take the name of a source apart, without a look at the disk or the network.

    Args:
        text: "stdlib", a folder, a glob, "debian:NAME", "debian:NAME=VERSION", "pypi:NAME" or "pypi:NAME==VERSION".

    Raises:
        ValueError: the text names no source.
    """
    if text == STDLIB:
        return SourceName(text, "stdlib", STDLIB)
    if text.startswith("debian:"):
        return _package(text, "debian", _DEBIAN, "debian:hello or debian:hello=2.10-3")
    if text.startswith("pypi:"):
        return _package(text, "pypi", _PYPI, "pypi:tomli or pypi:tomli==2.0.1")
    if not text or "\0" in text:
        raise ValueError(f"sources: {text!r} is no path; give a folder, a glob, stdlib, debian:NAME or pypi:NAME")
    return SourceName(text, "glob" if glob.has_magic(text) else "folder", text)


def _package(text: str, kind: Kind, pattern: re.Pattern[str], example: str) -> SourceName:
    found = pattern.fullmatch(text.partition(":")[2])
    if not found:
        raise ValueError(f"sources: {text!r} names no package; write it as {example}")
    return SourceName(text, kind, found[1], found[2])

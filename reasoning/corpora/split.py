"""The split into training and held-out files: by project, or for few projects by folders and files inside them.

A project's side depends on the hash of its name alone, so adding or removing others moves none to the other side. Files
of different sources with one project name, such as debian:six and pypi:six, are on the same side.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol

LEAST_PROJECTS = 10
"""From so many projects on, the split "auto" is by project."""


class Sized(Protocol):
    """What the split looks at in a file."""

    @property
    def project(self) -> str:
        """Name of the project."""

    @property
    def path(self) -> str:
        """Path below the project's root."""

    @property
    def size(self) -> int:
        """Bytes."""


def resolve_split(files: Sequence[Sized], split: str) -> str:
    """Return "projects" or "units"; for "auto", projects if there are at least LEAST_PROJECTS."""
    if split != "auto":
        return split
    return "projects" if len({file.project for file in files}) >= LEAST_PROJECTS else "units"


def split_files(files: Sequence[Sized], share: float, split: str) -> list[bool]:
    """Tell for each file whether it is held out.

    Args:
        files: the files.
        share: share of the projects or units that is held out; at least one always is.
        split: what is held out as a whole, "projects" or "units" inside them.

    Raises:
        ValueError: there is only one project or unit, so that one side would be empty.
    """
    units = [file.project for file in files] if split == "projects" else _units(files, share)
    names = sorted(set(units), key=_hash)
    if len(names) < 2:
        what = "projects" if split == "projects" else "files"
        raise ValueError(f"sources: there are {len(names)} usable {what}, too few to hold any out; give more {what}")
    held = {name for name in names[:-1] if _hash(name) < share} or {names[0]}
    return [unit in held for unit in units]


def _hash(name: str) -> float:
    """Return a number from 0 up to 1, evenly spread over names."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:8], "big") / 2**64


def _units(files: Sequence[Sized], share: float) -> list[str]:
    """Return the unit of each file: the outermost folder around it with at most `share` of all bytes, or the file.

    So a package of the standard library is one unit, but its tests, which are half of it, are many.
    """
    sizes: dict[str, int] = defaultdict(int)
    for file in files:
        for folder in _chain(file):
            sizes[folder] += file.size
    largest = share * sum(file.size for file in files)
    return [next((unit for unit in _chain(file)[1:] if sizes[unit] <= largest), _chain(file)[-1]) for file in files]


def _chain(file: Sized) -> list[str]:
    """Return the project, the folders around a file from the outside in, and the file."""
    parts = [file.project, *file.path.split("/")]
    return ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]

"""A file that a source offers, before anyone has looked into it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """A file of a project."""

    project: str
    """Name of the project, without its version: what the split into training and held-out files goes by."""
    path: str
    """Path below the project's root with "/" between its parts, as the archive or file system gives it."""
    size: int
    """Bytes, as stated by the archive or file system."""
    read: Callable[[], bytes]
    """Returns the content. Only to be called before the next entry is taken, because archives are read as streams."""
    regular: bool = True
    """False for links, devices and the like, whose content nobody reads."""

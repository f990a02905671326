"""Files that a command reads and writes: no file may be both, and no file may be written in two roles."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "memory/**/*",
)


@dataclass(frozen=True)
class Use:
    """A file in its role for the command."""

    field: str
    """The argument to change if the file cannot have this role."""
    path: Path
    role: str
    """The role in words, as in "PATH is the input"."""

    @property
    def names(self) -> set[object]:
        """Identities of the file: its resolved path, and its inode if it exists, so that links are recognised."""
        try:
            found = self.path.stat()
        except OSError:
            return {self.path.resolve()}
        return {self.path.resolve(), (found.st_dev, found.st_ino)}


def model_files(model_dir: Path) -> Iterator[Use]:
    """Yield the files that are read when a model directory is loaded."""
    for pattern in _MODEL_FILES:
        for path in model_dir.glob(pattern):
            yield Use("model", path, "a file of the model")


def check_apart(read: Iterable[Use], written: Iterable[Use]) -> None:
    """Refuse to write a file that has another role already, under any name, symbolic or hard link.

    Raises:
        ValueError: a file has two roles; the message names both.
    """
    taken: dict[object, Use] = {}
    for use in read:
        taken |= dict.fromkeys(use.names, use)
    for use in written:
        for name in use.names:
            if name in taken:
                raise ValueError(f"{use.field}: {use.path} is {taken[name].role}; give another file")
        taken |= dict.fromkeys(use.names, use)


def check_writable(use: Use) -> None:
    """Refuse to write to anything but a regular file: opening a pipe may hang, and a device cannot be continued.

    Raises:
        ValueError: the path is a directory, a pipe or a device.
    """
    if use.path.exists() and not use.path.is_file():
        raise ValueError(f"{use.field}: {use.path} is {_kind(use.path)}, not a file; give the name of a file")


def _kind(path: Path) -> str:
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        return "a directory"
    return "a pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"

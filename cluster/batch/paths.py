"""Files that a command reads and writes: no file may be both, nor be written as two."""

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
    """A file, and what it is to the command."""

    field: str
    """The argument to change if the file cannot be used so."""
    path: Path
    role: str
    """As in "PATH is the input"."""

    @property
    def names(self) -> set[object]:
        """What identifies the file: its place, and if it exists the file itself, whatever links lead to it."""
        try:
            found = self.path.stat()
        except OSError:
            return {self.path.resolve()}
        return {self.path.resolve(), (found.st_dev, found.st_ino)}


def model_files(model_dir: Path) -> Iterator[Use]:
    """Files that loading a model directory reads."""
    for pattern in _MODEL_FILES:
        for path in model_dir.glob(pattern):
            yield Use("model", path, "a file of the model")


def check_apart(read: Iterable[Use], written: Iterable[Use]) -> None:
    """Refuse to write a file that is read or written otherwise, by name, symbolic or hard link.

    Raises:
        ValueError: naming the file and what it is already.
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
    """Refuse to write to what is no regular file: opening a pipe may hang, and a device is not continued.

    Raises:
        ValueError: naming what there is instead.
    """
    if use.path.exists() and not use.path.is_file():
        raise ValueError(f"{use.field}: {use.path} is {_kind(use.path)}, not a file; give the name of a file")


def _kind(path: Path) -> str:
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        return "a directory"
    return "a pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"

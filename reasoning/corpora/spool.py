"""Files that passed cleaning, with their texts in one file on disk, so that a corpus may be larger than memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SourceFile:
    """A file that was kept."""

    source: str
    """Source as the user wrote it."""
    project: str
    """Name of the project."""
    path: str
    """Path below the project's root, printable."""
    start: int
    """Where its text begins in the spool, in bytes."""
    size: int
    """Length of its text in bytes."""

    @property
    def key(self) -> str:
        """What tells the file from every other, with the same value in every build."""
        return "\0".join((self.source, self.project, self.path))


class TextSpool:
    """Texts, one behind the other in a temporary file."""

    def __init__(self, path: Path) -> None:
        """Create the file."""
        self._path, self._file = path, path.open("w+b")
        self._end = 0

    def add(self, source: str, project: str, path: str, text: str) -> SourceFile:
        """Append the text of a file."""
        content = text.encode()
        self._file.seek(self._end)
        self._file.write(content)
        file = SourceFile(source, project, path, self._end, len(content))
        self._end += len(content)
        return file

    def text(self, file: SourceFile) -> str:
        """Return the text of a file."""
        self._file.seek(file.start)
        return self._file.read(file.size).decode()

    def texts(self, files: Iterable[SourceFile]) -> Iterator[str]:
        """Yield the texts of some files."""
        return map(self.text, files)

    def delete(self) -> None:
        """Delete the file."""
        self._file.close()
        self._path.unlink()

"""The directory of a snapshot: a local path, memory-mapped, or any URI that pyarrow.fs knows."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from memory_service.errors import SnapshotError


class Store:
    """Files below one directory, addressed by relative path with '/' between the parts."""

    def __init__(self, uri: str | Path) -> None:
        self.uri = str(uri)
        if "://" in self.uri:
            with self._naming(""):
                self._fs, self._base = fs.FileSystem.from_uri(self.uri)
        else:
            self._fs, self._base = fs.LocalFileSystem(), os.path.abspath(self.uri)
        self._local = isinstance(self._fs, fs.LocalFileSystem)

    def size(self, path: str) -> int | None:
        """Bytes of a file, or None where there is none."""
        with self._naming(path):
            info = self._fs.get_file_info(self._at(path))
        return info.size if info.type == fs.FileType.File else None

    def is_directory(self) -> bool:
        """Whether the directory itself exists."""
        with self._naming(""):
            return self._fs.get_file_info(self._base).type == fs.FileType.Directory

    @contextmanager
    def reading(self, path: str) -> Iterator[pa.NativeFile]:
        """Open a file for reading."""
        opened = pa.memory_map if self._local else self._fs.open_input_file
        with self._naming(path), opened(self._at(path)) as source:
            yield source

    @contextmanager
    def writing(self, path: str) -> Iterator[pa.NativeFile]:
        """Open a file for writing, its folder created where needed."""
        with self._naming(path):
            self._fs.create_dir(self._at(path).rpartition("/")[0], recursive=True)
            with self._fs.open_output_stream(self._at(path)) as sink:
                yield sink

    def write_whole(self, path: str, content: bytes) -> None:
        """Write a small file under another name and rename it, so that nobody ever sees half of it."""
        temporary = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
        with self.writing(temporary) as sink:
            sink.write(content)
        with self._naming(path):
            self._fs.move(self._at(temporary), self._at(path))

    def _at(self, path: str) -> str:
        return f"{self._base}/{path}"

    @contextmanager
    def _naming(self, path: str) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            raise SnapshotError(f"snapshot {self.uri}: cannot use {path or 'the directory'}: {error}") from error

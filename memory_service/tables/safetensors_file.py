"""Tensors of a safetensors file, read a few rows at a time. The safetensors library cannot read fp8 without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memory_service.tables.checks import Check, check_fields, shorten, text, wholes
from memory_service.tables.strict_json import parse_json

_NO_HEADER = "the header is truncated, or this is no safetensors file; copy it again"
_LENGTH_BYTES = 8  # little-endian, before the header
MAX_HEADER_BYTES = 100_000_000
"""Largest header that is read, the format's own limit; also used for the index of a checkpoint."""
_ENTRY: Mapping[str, Check] = {
    "dtype": text(r"[A-Z0-9_]+", "name a type of safetensors"),
    "shape": wholes(0, 2**63 - 1),
    "data_offsets": wholes(0, 2**63 - 1),
}
_ITEM_BYTES = {"F8_E4M3": 1, "F8_E8M0": 1, "BF16": 2, "F32": 4}


@dataclass(frozen=True)
class StoredTensor:
    """Location of a tensor [rows, width] in a file."""

    path: Path
    """Path of the file."""
    name: str
    """Name of the tensor."""
    dtype: str
    """Type as safetensors spells it, such as "F8_E4M3"."""
    shape: tuple[int, int]
    """Rows and width."""
    start: int
    """Offset in the file at which row 0 begins."""

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.shape[1] * _ITEM_BYTES[self.dtype]

    def read_rows(self, file: BufferedReader, first: int, count: int) -> NDArray[np.uint8]:
        """Read consecutive rows.

        Args:
            file: the file at `path`, opened.
            first: number of the first row.
            count: number of rows.

        Returns:
            uint8 [count, row_bytes].

        Raises:
            ValueError: the file ends before the last of these rows.
        """
        rows = np.empty((count, self.row_bytes), np.uint8)
        file.seek(self.start + first * self.row_bytes)
        if file.readinto(rows.data.cast("B")) != rows.nbytes:
            raise self.error(f"the file ends inside rows {first} to {first + count - 1}; copy it again")
        return rows

    def error(self, what: str) -> ValueError:
        """ValueError about this tensor, which names the file too."""
        return _error(self.path, self.name, what)


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Read the header of a safetensors file.

    Returns:
        Header entries by tensor name, and the offset in the file at which the tensors' data begins.

    Raises:
        ValueError: the file is truncated or is no safetensors file.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        content = file.read(length) if length <= MAX_HEADER_BYTES else b""
    try:
        header = parse_json(content)
    except ValueError as error:
        raise ValueError(f"{path}: {_NO_HEADER} ({error})") from error
    if len(content) != length or not isinstance(header, dict):
        raise ValueError(f"{path}: {_NO_HEADER}")
    header.pop("__metadata__", None)
    return header, _LENGTH_BYTES + length


def locate(path: Path, name: str, entry: Any, data_start: int) -> StoredTensor:
    """Locate the tensor that a header entry describes.

    Args:
        path: path of the file.
        name: name of the tensor.
        entry: the tensor's entry in the header.
        data_start: offset at which the tensors' data begins.

    Raises:
        ValueError: the entry is damaged, the dtype is none of a table's, the shape is not [rows, width], or the data is
            incomplete.
    """
    try:
        dtype, shape, (begin, end) = check_fields("entry", entry, _ENTRY).values()
    except (LookupError, TypeError, ValueError) as error:
        what = f"its header entry {shorten(entry)} is damaged ({error}); copy the file again"
        raise _error(path, name, what) from error
    if dtype not in _ITEM_BYTES:
        raise _error(path, name, f"dtype {dtype} is not supported; tables are one of {', '.join(_ITEM_BYTES)}")
    if len(shape) != 2 or 0 in shape:
        raise _error(path, name, f"shape {list(shape)} is not [rows, width]; is this an Engram checkpoint?")
    if end - begin != math.prod(shape) * _ITEM_BYTES[dtype]:
        raise _error(path, name, f"{end - begin} bytes do not hold {dtype} {list(shape)}; copy the file again")
    if (size := path.stat().st_size) < data_start + end:
        raise _error(path, name, f"the file is truncated to {size} of {data_start + end} bytes; copy it again")
    return StoredTensor(path, name, dtype, shape, data_start + begin)


def _error(path: Path, name: str, what: str) -> ValueError:
    return ValueError(f"{path}: tensor {name}: {what}")

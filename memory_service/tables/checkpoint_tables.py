"""Memory tables of a published checkpoint, read block by block from its safetensors files.

layers.{L}.engram.embed.weight    F8_E4M3 [rows, dim], or BF16 or F32, which have no scale
layers.{L}.engram.embed.scale     F8_E8M0 [rows, dim / 32], in the same file or another

Names may begin with `model.`. If there is a model.safetensors.index.json, only the files that it names for tables are
opened.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memory_service.tables.checks import shorten
from memory_service.tables.rows import FP8_GROUP, RowFormat
from memory_service.tables.safetensors_file import MAX_HEADER_BYTES, StoredTensor, locate, read_header
from memory_service.tables.spec import TableSpec
from memory_service.tables.strict_json import parse_json

INDEX = "model.safetensors.index.json"
_TENSOR = re.compile(r"(?:model\.)?layers\.([0-9]{1,9})\.engram\.embed\.(weight|scale)")
_FILE = re.compile(r"(?!\.)[^/\\\0-\x1f\ud800-\udfff]+\.safetensors")
_ROW_FORMATS = {"F8_E4M3": RowFormat.FP8_E4M3_UE8M0, "BF16": RowFormat.BF16, "F32": RowFormat.FP32}
_SCALE_DTYPE = "F8_E8M0"


@dataclass(frozen=True)
class CheckpointTable:
    """One layer's table as a checkpoint stores it.

    Raises:
        ValueError: weight and scale do not make packed rows.
    """

    weight: StoredTensor
    """Values of the rows."""
    scale: StoredTensor | None
    """Scales of the rows, for an fp8 weight only."""

    def __post_init__(self) -> None:
        if self.weight.dtype not in _ROW_FORMATS:
            raise self.weight.error(f"dtype {self.weight.dtype} is not one of {', '.join(_ROW_FORMATS)}")
        if (self.scale is not None) != (self.row_format is RowFormat.FP8_E4M3_UE8M0):
            what = "needs the tensor" if self.scale is None else "has no use for the tensor"
            scale = self.weight.name.removesuffix("weight") + "scale"
            raise self.weight.error(f"dtype {self.weight.dtype} {what} {scale}; is the checkpoint whole?")
        if self.scale is not None:
            self._check_scale(self.scale)

    def _check_scale(self, scale: StoredTensor) -> None:
        groups, rest = divmod(self.dim, FP8_GROUP)
        if rest:
            raise self.weight.error(f"{self.dim} values a row are no multiple of {FP8_GROUP}; store the table as BF16")
        if scale.dtype != _SCALE_DTYPE or scale.shape != (self.rows, groups):
            wanted, got = f"{_SCALE_DTYPE} {[self.rows, groups]}", f"{scale.dtype} {list(scale.shape)}"
            raise scale.error(f"is {got}, but the weight beside it needs {wanted}; are both of one checkpoint?")

    @property
    def row_format(self) -> RowFormat:
        """Format of the packed rows."""
        return _ROW_FORMATS[self.weight.dtype]

    @property
    def rows(self) -> int:
        """Number of rows in the table."""
        return self.weight.shape[0]

    @property
    def dim(self) -> int:
        """Number of values in a row."""
        return self.weight.shape[1]

    def require(self, spec: TableSpec) -> None:
        """Check that the stored rows are those that a spec describes.

        Raises:
            ValueError: number, length or format of the rows differ.
        """
        stored, wanted = (self.rows, self.dim, self.row_format), (spec.rows, spec.dim, spec.row_format)
        if stored != wanted:
            shapes = [f"{rows} rows of {dim} values in {fmt.value}" for rows, dim, fmt in (stored, wanted)]
            raise self.weight.error(
                f"holds {shapes[0]}, but the geometry of table {spec.name!r} has {shapes[1]}; "
                "use the preset or the config.json that belongs to this checkpoint"
            )

    def blocks(self, spec: TableSpec) -> Iterator[NDArray[np.uint8]]:
        """Read the table block by block in order, holding one block at a time.

        Yields:
            Packed rows, uint8 [n, row_bytes].

        Raises:
            ValueError: the stored rows are not those that `spec` describes, or a file is truncated.
        """
        self.require(spec)
        return self._blocks(spec)

    def _blocks(self, spec: TableSpec) -> Iterator[NDArray[np.uint8]]:
        parts = [part for part in (self.weight, self.scale) if part is not None]
        with ExitStack() as stack:
            files = [stack.enter_context(part.path.open("rb")) for part in parts]
            for block in range(spec.blocks):
                first, count = block * spec.block_rows, spec.block_length(block)
                columns = [part.read_rows(file, first, count) for part, file in zip(parts, files, strict=True)]
                yield columns[0] if len(columns) == 1 else np.concatenate(columns, axis=1)


class CheckpointTables:
    """All tables in the directory of a checkpoint."""

    def __init__(self, directory: Path, tensors: dict[tuple[int, str], StoredTensor]) -> None:
        self._directory = directory
        self._tensors = tensors
        self.layers = sorted(layer for layer, kind in tensors if kind == "weight")
        """Layers that have a table, in ascending order; there is at least one."""
        if not self.layers:
            raise ValueError(f"{directory}: no tensor layers.L.engram.embed.weight in it; give an Engram checkpoint")

    @classmethod
    def open(cls, directory: str | Path) -> CheckpointTables:
        """Find the tables of a checkpoint by reading headers, but no rows.

        Raises:
            ValueError: a file or tensor, which the message names, is missing or damaged.
        """
        directory = Path(directory)
        tensors: dict[tuple[int, str], StoredTensor] = {}
        for path, expected in _files(directory).items():
            for tensor in _tensors_of(path, expected):
                key = _key(tensor.name)
                if key in tensors:
                    raise tensor.error(f"is in {tensors[key].path} too; keep one of the files")
                tensors[key] = tensor
        return cls(directory, tensors)

    def table(self, layer: int) -> CheckpointTable:
        """Table of one layer.

        Raises:
            ValueError: the layer has no table, or weight and scale do not make packed rows.
        """
        weight = self._tensors.get((layer, "weight"))
        if weight is None:
            raise ValueError(
                f"{self._directory}: no tensor layers.{layer}.engram.embed.weight, only tables of the layers "
                f"{self.layers}; copy the whole checkpoint, or use the geometry that belongs to it"
            )
        return CheckpointTable(weight, self._tensors.get((layer, "scale")))


def _key(name: str) -> tuple[int, str]:
    found = _TENSOR.fullmatch(name)
    assert found, name
    return int(found[1]), found[2]


def _files(directory: Path) -> dict[Path, set[str]]:
    """Files to open, each with the tensors that the index, if there is one, says are in it."""
    index = directory / INDEX
    if not index.is_file():
        found: dict[Path, set[str]] = {path: set() for path in sorted(directory.glob("*.safetensors"))}
        if not found:
            raise ValueError(f"{directory}: no *.safetensors file there; give the directory of a checkpoint")
        return found
    promised: dict[Path, set[str]] = {}
    for name, file in _weight_map(index).items():
        if _TENSOR.fullmatch(name):
            promised.setdefault(directory / _inside(index, name, file), set()).add(name)
    return promised


def _weight_map(index: Path) -> dict[str, Any]:
    """File name of each tensor according to an index; ValueError if it is no index or too large."""
    with index.open("rb") as file:
        content = file.read(MAX_HEADER_BYTES + 1)
    try:
        if len(content) > MAX_HEADER_BYTES:
            raise ValueError(f"it is larger than {MAX_HEADER_BYTES} bytes")
        weight_map = parse_json(content)["weight_map"]
        if not isinstance(weight_map, dict):
            raise ValueError(f"weight_map={shorten(weight_map)} is no object")
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{index}: no index of safetensors files ({error!r}); copy it again") from error
    return weight_map


def _inside(index: Path, name: str, file: Any) -> str:
    """The file name of a tensor in an index; ValueError unless it is a plain name, so that the file is beside it."""
    if not isinstance(file, str) or not _FILE.fullmatch(file):
        raise ValueError(
            f"{index}: no index of safetensors files: it names {shorten(file)} for tensor {name}, which is no "
            "*.safetensors file beside it; copy the checkpoint again, all files in one directory"
        )
    return file


def _tensors_of(path: Path, expected: set[str]) -> list[StoredTensor]:
    if not path.is_file():
        raise ValueError(f"{path}: no such file, though {INDEX} names it; copy the whole checkpoint")
    header, data_start = read_header(path)
    if missing := sorted(expected - header.keys()):
        raise ValueError(f"{path}: tensor {missing[0]}: not in the file that {INDEX} names for it; copy both again")
    return [locate(path, name, entry, data_start) for name, entry in header.items() if _TENSOR.fullmatch(name)]

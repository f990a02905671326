"""The files of a checkpoint: which there are, what their headers say, and where each tensor is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from reasoning.architectures.weights import Shape
from reasoning.config.checks import brief, shortened

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_NUMBERED = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.safetensors")


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as the header of its file describes it; the data are not read yet."""

    name: str
    """Its name in the file."""
    dtype: str
    """Its type as safetensors spells it, such as "F8_E4M3"."""
    shape: Shape
    """Its shape in the file."""
    path: Path
    """The file."""
    file: safe_open
    """The same file, opened."""

    def read(self) -> Tensor:
        """Return the tensor, mapped from its file.

        Raises:
            ValueError: the file is damaged.
        """
        with _damage_named(self.path):
            return self.file.get_tensor(self.name)


@contextmanager
def open_checkpoint(directory: Path) -> Iterator[Mapping[str, StoredTensor]]:
    """Open the files of a checkpoint; the tensors of all of them by name, in the order of the files.

    Files are those that the index names, or `model.safetensors`, or without either all `*.safetensors` there are. The
    headers decide which file has which tensor. A name in the index must not lead out of the directory, but a symbolic
    link may, as the links in the cache of Hugging Face do: who can create a link can create a file as well.

    Raises:
        ValueError: a file is missing or damaged, the index is damaged, or two files have the same tensor.
    """
    with ExitStack() as opened:
        tensors: dict[str, StoredTensor] = {}
        for path in _files(directory):
            for tensor in _stored_in(path, opened):
                if tensor.name in tensors:
                    name, both = brief(tensor.name), f"{tensors[tensor.name].path.name} and {path.name}"
                    raise ValueError(f"checkpoint: tensor {name} is in both {both}; remove one of the files")
                tensors[tensor.name] = tensor
        yield tensors


def _stored_in(path: Path, opened: ExitStack) -> list[StoredTensor]:
    with _damage_named(path):
        file = opened.enter_context(safe_open(path, framework="pt"))
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 -- not a mapping
        return [StoredTensor(n, part.get_dtype(), tuple(part.get_shape()), path, file) for n, part in slices.items()]


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except SafetensorError as error:
        raise ValueError(f"model: {path} is damaged or cut short ({brief(str(error))}); copy it again") from error


def _files(directory: Path) -> list[Path]:
    index, single = directory / INDEX, directory / SINGLE
    if index.is_file():
        return [_existing(directory / name, f"{INDEX} names it") for name in _indexed(index)]
    shards = sorted(directory.glob("*.safetensors")) if not single.is_file() else []
    return _complete(shards) if shards else [_existing(single, "no index names other files")]


def _existing(path: Path, why: str) -> Path:
    if not path.is_file():
        raise ValueError(f"model: {path} does not exist; copy the whole checkpoint, as {why}")
    return path


def _indexed(index: Path) -> list[str]:
    """Return the names of the files that an index lists, sorted."""
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        if not all(isinstance(name, str) for name in names):
            raise TypeError("a file name is not a string")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        what = shortened(str(error))
        raise ValueError(f"model: {index} is not an index of safetensors files ({what}); copy it again") from error
    for name in names:
        if Path(name).is_absolute() or ".." in Path(name).parts or len(name) > 255:
            raise ValueError(
                f"model: {index} names {shortened(name)}, which is no file of the model's folder; copy the checkpoint "
                "again, and put all its files there"
            )
    return names


def _complete(shards: list[Path]) -> list[Path]:
    """Return files that no index lists, after checking numbered ones, such as `model-00002-of-00005.safetensors`."""
    numbered = [found for path in shards if (found := _NUMBERED.fullmatch(path.name))]
    for stem, total in sorted({(found[1], found[3]) for found in numbered}):
        for number in range(1, int(total) + 1):
            name = f"{stem}-{number:05d}-of-{total}.safetensors"
            _existing(shards[0].with_name(name), f"its other files count {int(total)}")
    return shards

"""The file that describes a training run, run.toml."""

from __future__ import annotations

import collections.abc
import dataclasses
import sys
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from memory_service.learning.optimizers import OptimizerConfig
from reasoning.corpora.config import CorpusConfig
from reasoning.corpora.sources.parse import parse_source
from reasoning.runs.presets import MODELS
from reasoning.training.config import TablesConfig, TrainingConfig

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    import tomli as tomllib


@dataclass(frozen=True)
class ModelChoice:
    """What is trained.

    Raises:
        ValueError: there is no such preset.
    """

    preset: str = "tiny-code"
    """Shape of a new model."""
    directory: Path | None = None
    """Model directory, or the folder of a run, to go on from instead, with its tokenizer and tables."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Keys of a config.json that differ from the preset's, such as `hidden_size` or `engram_vocab_size`."""

    def __post_init__(self) -> None:
        if self.preset not in MODELS:
            raise ValueError(f"preset: {self.preset!r} is unknown; use {' or '.join(sorted(MODELS))}")
        if self.directory is not None and self.config:
            raise ValueError("config: a model that is gone on with keeps its shape; leave it out, or the directory")


@dataclass(frozen=True)
class CheckpointConfig:
    """When a run writes checkpoints.

    Raises:
        ValueError: a value is out of range.
    """

    minutes: float = 10.0
    """Minutes of training between checkpoints."""
    steps: int = 0
    """Steps between checkpoints; 0 to go by `minutes` alone."""
    keep: int = 2
    """Number of checkpoints that are kept."""

    def __post_init__(self) -> None:
        if not self.minutes > 0:
            raise ValueError(f"minutes: {self.minutes} must be above 0")
        if self.steps < 0 or self.keep < 1:
            raise ValueError(f"steps: {self.steps}, keep: {self.keep}: use at least 0 and 1")


@dataclass(frozen=True)
class ClusterConfig:
    """The processes of a run on Ray.

    Raises:
        ValueError: a number is out of range.
    """

    workers: int = 0
    """Workers that share the training; 0 to train in this process, without Ray."""
    min_workers: int = 0
    """Fewest workers to go on with while nodes are missing; 0 for no fewer than `workers`."""
    shards: int = 1
    """Memory shards that hold the tables and their optimizer state; needs `workers`."""
    cpus_per_worker: float = 1.0
    """CPU cores that a worker takes."""
    gpu: bool = False
    """Whether each worker takes a GPU."""
    unreachable_s: float = 10.0
    """Seconds that a shard may be out of reach before the workers go back to the last checkpoint."""
    failures: int = 8
    """Number of times that the run goes on from its last checkpoint after a worker or a shard has died."""
    reader: str = "arrow"
    """How workers read the corpus: `arrow` maps its files; `ray` has Ray Data read them, which needs spare cores."""

    def __post_init__(self) -> None:
        for name, least in (("workers", 0), ("min_workers", 0), ("shards", 1), ("failures", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: {getattr(self, name)} must be at least {least}")
        if self.min_workers > self.workers:
            raise ValueError(f"min_workers: {self.min_workers} must be at most `workers`, {self.workers}")
        if self.reader not in ("arrow", "ray"):
            raise ValueError(f"reader: {self.reader!r} is unknown; use arrow or ray")


@dataclass(frozen=True)
class RunConfig:
    """A training run."""

    output: Path
    """Folder of the run: corpus, checkpoints, log, and in the end the model. A run that is there already goes on."""
    training: TrainingConfig
    """Settings of the training."""
    model: ModelChoice = field(default_factory=ModelChoice)
    """What is trained."""
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    """What it is trained on."""
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    """When checkpoints are written."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Processes of the run."""

    @classmethod
    def read(cls, path: Path) -> RunConfig:
        """Read a run.toml: `output`, and a section for each other field; relative paths start at the file's folder.

        Raises:
            ValueError: the file cannot be read, or a key or value is not possible; names section and key.
        """
        try:
            content = tomllib.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ValueError(f"config: {path} cannot be read: {error}") from error
        return cls.from_dict(content, path.parent)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], folder: Path) -> RunConfig:
        """Return the run that a parsed run.toml describes; relative paths start at `folder`.

        Raises:
            ValueError: a key or value is not possible; names section and key.
        """
        sections = dict(content)
        if "output" not in sections:
            raise ValueError('output: the file names no folder of the run; add output = "FOLDER" at its top')
        training = dict(_section(sections, "training"))
        if "tables" in training:
            raise ValueError("[training] tables: unknown; the tables have a section of their own, [tables]")
        training["tables"] = _tables(_section(sections, "tables"), folder)
        built = {
            "output": _convert(sections.pop("output"), Path, "output", folder),
            "training": _build(TrainingConfig, training, "training", folder),
            "model": _build(ModelChoice, _section(sections, "model"), "model", folder),
            "corpus": _corpus(_section(sections, "corpus"), folder),
            "checkpoints": _build(CheckpointConfig, _section(sections, "checkpoints"), "checkpoints", folder),
            "cluster": _build(ClusterConfig, _section(sections, "cluster"), "cluster", folder),
        }
        if sections:
            known = ", ".join(["output", "model", "corpus", "training", "tables", "checkpoints", "cluster"])
            raise ValueError(f"config: {next(iter(sections))} is unknown; use {known}")
        return cls(**built)


def _section(sections: dict[str, Any], name: str) -> Mapping[str, Any]:
    section = sections.pop(name, {})
    if not isinstance(section, Mapping):
        raise ValueError(f"config: {name} must be a section, [{name}]")
    return section


def _corpus(section: Mapping[str, Any], folder: Path) -> CorpusConfig:
    """The section [corpus], whose sources may be paths too."""
    built: CorpusConfig = _build(CorpusConfig, section, "corpus", folder)
    paths = [parse_source(source).kind in ("folder", "glob") for source in built.sources]
    sources = [
        str(folder / Path(source).expanduser()) if is_path else source
        for source, is_path in zip(built.sources, paths, strict=True)
    ]
    return dataclasses.replace(built, sources=tuple(sources))


def _tables(section: Mapping[str, Any], folder: Path) -> TablesConfig:
    """The section [tables]: fields of TablesConfig and, beside them, the constants of its optimizer."""
    values = dict(section)
    constants: dict[str, Any] = {name: values.pop(name) for name in ("beta1", "beta2", "eps") if name in values}
    if "optimizer" in values:
        constants["name"] = values.pop("optimizer")
    built = dict(_typed(TablesConfig, values, "tables", folder))
    if constants:
        built["optimizer"] = _optimizer(constants, folder)
    return _checked(TablesConfig, built, "tables")


def _optimizer(constants: Mapping[str, Any], folder: Path) -> OptimizerConfig:
    """The optimizer of the section [tables], in which its name is called `optimizer`."""
    try:
        return _build(OptimizerConfig, constants, "tables", folder)
    except ValueError as error:
        raise ValueError(str(error).replace("[tables] name:", "[tables] optimizer:")) from error


def _build(kind: Any, values: Mapping[str, Any], section: str, folder: Path) -> Any:
    return _checked(kind, _typed(kind, values, section, folder), section)


def _checked(kind: Any, values: Mapping[str, Any], section: str) -> Any:
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"[{section}] {error}") from error


def _typed(kind: Any, values: Mapping[str, Any], section: str, folder: Path) -> dict[str, Any]:
    """Values of a section as the fields of a dataclass want them."""
    hints = typing.get_type_hints(kind)
    known = [each.name for each in fields(kind)]
    found = {}
    for name, value in values.items():
        if name not in known:
            options = [each for each in known if not dataclasses.is_dataclass(hints[each])]
            raise ValueError(f"[{section}] {name}: unknown; use {', '.join(options)}")
        found[name] = _convert(value, hints[name], f"[{section}] {name}", folder)
    return found


def _convert(value: Any, hint: Any, name: str, folder: Path) -> Any:
    if typing.get_origin(hint) is collections.abc.Mapping:
        if isinstance(value, Mapping):
            return dict(value)
        raise ValueError(f"{name}: {value!r} must be a section")
    options = [each for each in typing.get_args(hint) if each is not type(None)]
    kind = options[0] if options and typing.get_origin(hint) is not tuple else hint
    if typing.get_origin(hint) is tuple:
        if isinstance(value, list) and all(isinstance(each, str) for each in value):
            return tuple(value)
        raise ValueError(f"{name}: {value!r} must be a list of texts")
    if dataclasses.is_dataclass(kind):
        return value
    if kind is Path and isinstance(value, str):
        return folder / Path(value).expanduser()
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        expected = "a path" if kind is Path else f"of type {kind.__name__}"
        raise ValueError(f"{name}: {value!r} must be {expected}")
    return value

"""OUTPUT.job.json: which job wrote an output, how far it has come, and what it was at when it was killed."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reasoning.engine.config import EngineConfig
from reasoning.request import SamplingParams

_FORMAT = 2
"""Since 2, lines are numbered without the blank ones."""
_OF_ENGINE = ("dtype", "max_context")
_DEFAULTS = dataclasses.asdict(SamplingParams()) | {name: getattr(EngineConfig(), name) for name in _OF_ENGINE}


@dataclass(frozen=True)
class JobIdentity:
    """What must not change between the runs of one job, because output lines depend on it."""

    model: str
    sampling: Mapping[str, Any]
    engine: Mapping[str, Any] = field(default_factory=dict)
    """Options of the engine that change what a line yields."""

    @classmethod
    def of(cls, model_dir: Path, sampling: SamplingParams, engine: EngineConfig) -> JobIdentity:
        """Identify a job by what it is configured to do."""
        options = {name: getattr(engine, name) for name in _OF_ENGINE}
        return cls(str(model_dir.resolve()), dataclasses.asdict(sampling), options)

    def differences(self, saved: Mapping[str, Any]) -> list[str]:
        """Say what differs from a saved identity, as "temperature was 0.0, is 0.7"."""
        before = {**_DEFAULTS, "model": saved.get("model"), **saved.get("sampling", {}), **saved.get("engine", {})}
        now = json.loads(json.dumps({"model": self.model, **self.sampling, **self.engine}))  # lists for tuples
        before = json.loads(json.dumps(before))
        return [f"{name} was {before.get(name)}, is {now[name]}" for name in now if before.get(name) != now[name]]


@dataclass(frozen=True)
class Attempt:
    """Lines that a process worked on, and how often one was killed at that."""

    first: int
    """Number of the first line."""
    count: int
    deaths: int
    digest: str
    """Of the input up to the last of the lines: if it is another one, they have changed."""

    @property
    def last(self) -> int:
        """Number of the last line."""
        return self.first + self.count - 1

    def once_more(self) -> Attempt:
        """The same lines, a death later."""
        return dataclasses.replace(self, deaths=self.deaths + 1)

    def __contains__(self, number: int) -> bool:
        return self.first <= number <= self.last


@dataclass(frozen=True)
class Progress:
    """How far a job has come."""

    lines: int
    """Lines of the input that have a record."""
    digest: str
    """Of the input up to the last of them."""
    attempt: Attempt | None = None
    """Lines being worked on, by a process that would not survive what kills its worker."""
    counts_blank_lines: bool = False
    """Whether the output is of an earlier version, whose numbers of lines included blank ones."""


def sidecar_files(output: Path) -> tuple[Path, Path]:
    """The file beside an output, and the one that replaces it at every step."""
    path = output.with_name(output.name + ".job.json")
    return path, path.with_name(path.name + ".tmp")


class Sidecar:
    """The file beside an output that says which job wrote it."""

    def __init__(self, output: Path, identity: JobIdentity) -> None:
        self.path, self.scratch = sidecar_files(output)
        self._identity = identity

    def load(self) -> Progress:
        """Read how far this job has come.

        Raises:
            ValueError: the file is missing, damaged, or another job's; the message continues "OUTPUT ...".
        """
        try:
            saved = json.loads(self.path.read_text())
            differences = self._identity.differences(saved)
            progress = _progress(saved)
        except FileNotFoundError:
            raise ValueError(f"has lines, but no {self.path.name} tells which job wrote them") from None
        except (ValueError, AttributeError, TypeError, KeyError, RecursionError) as error:
            raise ValueError(f"has a damaged {self.path.name}") from error
        if differences:
            raise ValueError(f"belongs to another job: {'; '.join(differences)}")
        return progress

    def save(self, progress: Progress) -> None:
        """Replace the file in one step."""
        state = {
            "format": 1 if progress.counts_blank_lines else _FORMAT,
            "model": self._identity.model,
            "sampling": dict(self._identity.sampling),
            "engine": dict(self._identity.engine),
            "lines": progress.lines,
            "input_xxh3_128": progress.digest,
        }
        if progress.attempt is not None:
            state["attempt"] = dataclasses.asdict(progress.attempt)
        self.scratch.unlink(missing_ok=True)  # of a killed process, or a link that is not to be followed
        try:
            with open(self.scratch, "x") as file:
                file.write(json.dumps(state, indent=2) + "\n")
            os.replace(self.scratch, self.path)
        except OSError:
            self.scratch.unlink(missing_ok=True)
            raise


def _progress(saved: Mapping[str, Any]) -> Progress:
    """Read what a file says; raises what `load` takes for damage."""
    lines, digest, attempt = saved["lines"], saved["input_xxh3_128"], saved.get("attempt")
    _check_number(lines, 0)
    _check_text(digest)
    if attempt is not None:
        attempt = Attempt(**attempt)
        for number, least in ((attempt.first, 1), (attempt.count, 1), (attempt.deaths, 0)):
            _check_number(number, least)
        _check_text(attempt.digest)
    return Progress(lines, digest, attempt, saved.get("format", 1) != _FORMAT)


def _check_number(value: Any, least: int) -> None:
    if type(value) is not int or value < least:
        raise TypeError(value)


def _check_text(value: Any) -> None:
    if type(value) is not str:
        raise TypeError(value)

"""OUTPUT.job.json: which job wrote an output, how far it has come, and which lines it was working on."""

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
"""Since version 2, blank lines are not numbered."""
_OF_ENGINE = ("dtype", "max_context")
_DEFAULTS = dataclasses.asdict(SamplingParams()) | {name: getattr(EngineConfig(), name) for name in _OF_ENGINE}


@dataclass(frozen=True)
class JobIdentity:
    """The configuration that output lines depend on, which must not change between the runs of a job."""

    model: str
    sampling: Mapping[str, Any]
    engine: Mapping[str, Any] = field(default_factory=dict)
    """Engine options that change the result of a line."""

    @classmethod
    def of(cls, model_dir: Path, sampling: SamplingParams, engine: EngineConfig) -> JobIdentity:
        """Identify a job by its configuration."""
        options = {name: getattr(engine, name) for name in _OF_ENGINE}
        return cls(str(model_dir.resolve()), dataclasses.asdict(sampling), options)

    def differences(self, saved: Mapping[str, Any]) -> list[str]:
        """List the differences from a saved identity, as in "temperature was 0.0, is 0.7"."""
        before = {**_DEFAULTS, "model": saved.get("model"), **saved.get("sampling", {}), **saved.get("engine", {})}
        now = json.loads(json.dumps({"model": self.model, **self.sampling, **self.engine}))  # lists for tuples
        before = json.loads(json.dumps(before))
        return [f"{name} was {before.get(name)}, is {now[name]}" for name in now if before.get(name) != now[name]]


@dataclass(frozen=True)
class Attempt:
    """Lines that a process works on, and how often a process was killed while working on them."""

    first: int
    """Number of the first line."""
    count: int
    """Number of lines."""
    deaths: int
    """Number of processes that were killed."""
    digest: str
    """Digest of the input up to the last of the lines; it differs if they have changed."""

    @property
    def last(self) -> int:
        """Number of the last line."""
        return self.first + self.count - 1

    def once_more(self) -> Attempt:
        """Return the attempt with another death."""
        return dataclasses.replace(self, deaths=self.deaths + 1)

    def __contains__(self, number: int) -> bool:
        return self.first <= number <= self.last


@dataclass(frozen=True)
class Progress:
    """How far a job has come."""

    lines: int
    """Number of input lines that have a record."""
    digest: str
    """Digest of the input up to the last of these lines."""
    attempt: Attempt | None = None
    """Lines being worked on by a process that does not survive the death of its worker."""
    counts_blank_lines: bool = False
    """Whether an earlier version wrote the output, which counted blank lines too when it numbered lines."""


def sidecar_files(output: Path) -> tuple[Path, Path]:
    """Return the path of an output's sidecar, and of the scratch file that replaces it at every step."""
    path = output.with_name(output.name + ".job.json")
    return path, path.with_name(path.name + ".tmp")


class Sidecar:
    """The file beside an output that records which job wrote it."""

    def __init__(self, output: Path, identity: JobIdentity) -> None:
        self.path, self.scratch = sidecar_files(output)
        self._identity = identity

    def load(self) -> Progress:
        """Read how far this job has come.

        Raises:
            ValueError: the file is missing, damaged, or belongs to another job. The message is a predicate whose
                subject is the output.
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
        """Replace the file atomically."""
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
        self.scratch.unlink(missing_ok=True)  # left by a killed process, or a link that must not be followed
        try:
            with open(self.scratch, "x") as file:
                file.write(json.dumps(state, indent=2) + "\n")
            os.replace(self.scratch, self.path)
        except OSError:
            self.scratch.unlink(missing_ok=True)
            raise


def _progress(saved: Mapping[str, Any]) -> Progress:
    """Parse the content of the file; raises what `load` reports as damage."""
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

"""Output of a batch job: one JSONL file in input order, and beside it what is needed to continue after a crash.

Lines are appended in order, so what is done is a prefix of the input and its length is the number of complete
output lines. `OUTPUT.job.json` says which job wrote them: model, sampling and a checksum of the input lines consumed.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import xxhash

from cluster.batch.lines import read_raw

_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class JobIdentity:
    """What must not change between the runs of one job, because output lines depend on it."""

    model: str
    sampling: Mapping[str, Any]

    def differences(self, saved: Mapping[str, Any]) -> list[str]:
        """Say what differs from a saved identity, as "temperature was 0.0, is 0.7"."""
        before = {"model": saved.get("model"), **saved.get("sampling", {})}
        sampling = json.loads(json.dumps(dict(self.sampling)))  # as it is saved, with lists for tuples
        now = {"model": self.model, **sampling}
        return [f"{name} was {before.get(name)}, is {now[name]}" for name in now if before.get(name) != now[name]]


class JobOutput:
    """The output file of a job, open for appending and locked against a second run."""

    total: int
    """Non-blank lines of the input."""
    done: int
    """How many of them have their output line."""

    def __init__(self, path: Path, source: Path, identity: JobIdentity, overwrite: bool = False) -> None:
        """Open or continue `path`.

        Raises:
            ValueError: the file belongs to another job, or another process is writing it.
            OSError: a file cannot be read or written.
        """
        if path.exists() and path.samefile(source):
            raise ValueError(f"output: {path} is the input; give another file")
        self.path, self._identity = path, identity
        self._sidecar = path.with_name(path.name + ".job.json")
        self._file = _open_locked(path)
        try:
            self._start(source, overwrite)
        except BaseException:
            self._file.close()
            raise

    def write(self, raws: Sequence[bytes], records: Sequence[Mapping[str, Any]]) -> None:
        """Append the records of the next input lines, and hand them to the operating system before returning."""
        blob = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        self._file.write(blob.encode())
        self._file.flush()
        for raw in raws:
            _consume(self._digest, raw)
        self.done += len(records)
        self._save()

    def close(self) -> None:
        """Write through to the disk and unlock."""
        if not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()

    def __enter__(self) -> JobOutput:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self, source: Path, overwrite: bool) -> None:
        if overwrite:
            self._file.truncate(0)
        self.done = _keep_complete_lines(self._file)
        saved = self._check_saved() if self.done else {}
        self._digest = xxhash.xxh3_128()
        self.total = self._survey(source, saved)
        if self.done > self.total:
            raise ValueError(
                f"input: {source} has {self.total} lines, {self.path} already {self.done}; "
                "restore the input or set `overwrite`"
            )
        self._save()

    def _check_saved(self) -> dict[str, Any]:
        """Return the job that wrote the output so far; ValueError unless it is this one."""
        try:
            saved = json.loads(self._sidecar.read_text())
            differences = self._identity.differences(saved)
        except FileNotFoundError:
            problem = f"has lines, but no {self._sidecar.name} tells which job wrote them"
        except (ValueError, AttributeError, TypeError):
            problem = f"has a damaged {self._sidecar.name}"
        else:
            if not differences:
                return saved
            problem = f"belongs to another job: {'; '.join(differences)}"
        raise ValueError(f"output: {self.path} {problem}; choose another file or set `overwrite`")

    def _survey(self, source: Path, saved: Mapping[str, Any]) -> int:
        """Count the input's lines, and digest those consumed; ValueError if they are not what they were."""
        checked, expected = saved.get("lines", 0), saved.get("input_xxh3_128")
        digest, total, unchanged = xxhash.xxh3_128(), 0, checked == 0
        for total, (_, raw) in enumerate(read_raw(source), start=1):
            if total <= max(checked, self.done):
                _consume(digest, raw)
            if total == checked:
                unchanged = digest.hexdigest() == expected
            if total == self.done:
                self._digest = digest.copy()
        if not unchanged:
            raise ValueError(
                f"input: the first {checked} lines of {source} changed since {self.path} was written; "
                "restore them, choose another `output` or set `overwrite`"
            )
        return total

    def _save(self) -> None:
        """Replace the sidecar in one step. It may lag behind the output by one write, never lead it."""
        state = {
            "model": self._identity.model,
            "sampling": dict(self._identity.sampling),
            "lines": self.done,
            "input_xxh3_128": self._digest.hexdigest(),
        }
        scratch = self._sidecar.with_name(self._sidecar.name + ".tmp")
        scratch.write_text(json.dumps(state, indent=2) + "\n")
        os.replace(scratch, self._sidecar)


def _open_locked(path: Path) -> IO[bytes]:
    file = open(path, "a+b")  # noqa: SIM115 -- closed by JobOutput
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ValueError(
            f"output: {path} is being written by another run; wait for it or choose another file"
        ) from None
    return file


def _keep_complete_lines(file: IO[bytes]) -> int:
    """Count newline-terminated lines and cut off what follows the last: the trace of a write that was interrupted."""
    lines = size = end = 0
    file.seek(0)
    for block in _blocks(file):
        lines += block.count(b"\n")
        newline = block.rfind(b"\n")
        if newline >= 0:
            end = size + newline + 1
        size += len(block)
    file.truncate(end)
    file.seek(end)
    return lines


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    while block := file.read(_READ_BYTES):
        yield block


def _consume(digest: xxhash.xxh3_128, raw: bytes) -> None:
    digest.update(raw)
    digest.update(b"\n")

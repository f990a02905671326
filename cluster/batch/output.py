"""Output of a batch job: one JSONL file in input order, and beside it what is needed to continue after a crash.

Lines are appended in order, so what is done is a prefix of the input and its length is the number of complete
output lines. `OUTPUT.job.json` says which job wrote them: model, sampling and a checksum of the input lines consumed.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NoReturn, Protocol

from cluster.batch.paths import Use, check_apart, check_writable
from cluster.batch.reading import EMPTY_DIGEST, check_format, read_lines
from cluster.batch.records import to_jsonl
from cluster.batch.sidecar import Attempt, JobIdentity, Progress, Sidecar, sidecar_files

_READ_BYTES = 1 << 20


class Output(Protocol):
    """Receives the records of a job."""

    total: int
    """Number of input lines that are not blank."""
    done: int
    """Number of input lines that have a record."""
    attempt: Attempt | None
    """Lines that an earlier process was working on when it was killed; `deaths` counts that."""

    def write(self, records: Sequence[Mapping[str, Any]], digest: str) -> None:
        """Append the records of the next input lines; `digest` is that of the input up to the last of them.

        Raises:
            ValueError: they cannot be written. What was written before is kept, and the job can be continued.
        """

    def begin(self, attempt: Attempt | None) -> None:
        """Record which lines this process works on, in case it is killed; None clears the record."""


class JobOutput:
    """The output file of a job, open for appending and locked against a second run."""

    attempt: Attempt | None = None

    def __init__(self, path: Path, source: Path, identity: JobIdentity, overwrite: bool = False) -> None:
        """Open or continue `path`.

        Raises:
            ValueError: the file belongs to another job, is not a regular file, or another process is writing it.
            OSError: a file cannot be read or written.
        """
        self.path = path
        self._sidecar = Sidecar(path, identity)
        check_format(source)
        check_apart([Use("input", source, "the input")], output_files(path))
        if not path.parent.is_dir():
            raise ValueError(f"output: no directory {path.parent}; create it first")
        for use in output_files(path):
            check_writable(use)
        self._file = _open_locked(path)
        try:
            self._start(source, overwrite)
        except BaseException:
            self._file.close()
            raise

    def write(self, records: Sequence[Mapping[str, Any]], digest: str) -> None:
        """Append the records of the next input lines, and hand them to the operating system before returning."""
        end = self._file.seek(0, os.SEEK_END)
        try:
            _write_all(self._file, to_jsonl(records))
        except OSError as error:
            self._file.truncate(end)  # no half of a record
            self._refuse(error, self.path)
        self.done += len(records)
        self._digest, self.attempt = digest, None
        self._save()

    def begin(self, attempt: Attempt | None) -> None:
        """Record which lines this process works on, in case it is killed."""
        self.attempt = attempt
        self._save()

    def close(self) -> None:
        """Write through to the disk and unlock."""
        if not self._file.closed:
            with self._file:
                os.fsync(self._file.fileno())

    def __enter__(self) -> JobOutput:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except OSError as unwritten:
            if error is None:
                self._refuse(unwritten, self.path)

    def _start(self, source: Path, overwrite: bool) -> None:
        """Determine how far the job has come. Nothing is changed before all checks have passed."""
        self.done, end = (0, 0) if overwrite else _complete_lines(self._file)
        saved = Progress(0, EMPTY_DIGEST) if overwrite else self._load()
        self.total = self._survey(source, saved)
        if self.done > self.total:
            raise ValueError(
                f"input: {source} has {self.total} lines, {self.path} already {self.done}; "
                "restore the input or set `overwrite`"
            )
        self._file.truncate(end)
        self._save()

    def _load(self) -> Progress:
        """Return how far this job has come; ValueError if the output has content of another job."""
        try:
            return self._sidecar.load()
        except ValueError as error:
            if os.fstat(self._file.fileno()).st_size:
                problem = f"{self.path} {error}; choose another file or set `overwrite`"
                raise ValueError(f"output: {problem}") from error.__cause__
            return Progress(0, EMPTY_DIGEST)

    def _survey(self, source: Path, saved: Progress) -> int:
        """Count the lines of the input; ValueError if the consumed lines have changed."""
        total, unchanged, blank_lines = 0, saved.lines == 0, False
        self._digest = EMPTY_DIGEST
        for line in read_lines(source, limit=0):
            total = line.number
            blank_lines |= line.place != line.number
            if line.number == saved.lines:
                unchanged = line.digest == saved.digest
            if line.number == self.done:
                self._digest = line.digest
            attempt = saved.attempt
            if attempt is not None and attempt.last == line.number > self.done and attempt.digest == line.digest:
                self.attempt = attempt.once_more()
        if not unchanged:
            raise ValueError(
                f"input: the first {saved.lines} lines of {source} changed since {self.path} was written; "
                "restore them, choose another `output` or set `overwrite`"
            )
        self._counts_blank_lines = saved.counts_blank_lines and blank_lines
        if self._counts_blank_lines and 0 < self.done < total:
            raise ValueError(
                f"output: {self.path} was begun by an earlier version, which numbered blank lines of the input as "
                "well: the rest would be numbered otherwise; choose another file or set `overwrite`"
            )
        return total

    def _save(self) -> None:
        """Replace the sidecar atomically. It may lag behind the output by one write, but never lead it."""
        progress = Progress(self.done, self._digest, self.attempt, self._counts_blank_lines)
        try:
            self._sidecar.save(progress)
        except OSError as error:
            self._refuse(error, self._sidecar.path)

    def _refuse(self, error: OSError, path: Path) -> NoReturn:
        raise ValueError(
            f"output: {path} cannot be written ({error.strerror}); what is there stays valid: make room, or mend what "
            "is wrong, and run the same command again to continue"
        ) from error


def output_files(path: Path) -> list[Use]:
    """Return the files that a job with this output writes."""
    return [
        Use("output", path, "the output"),
        *(Use("output", file, "the job file beside the output") for file in sidecar_files(path)),
    ]


def _open_locked(path: Path) -> IO[bytes]:
    file = open(path, "a+b", buffering=0)  # noqa: SIM115 -- closed by JobOutput
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ValueError(
            f"output: {path} is being written by another run; wait for it or choose another file"
        ) from None
    return file


def _write_all(file: IO[bytes], blob: bytes) -> None:
    rest = memoryview(blob)
    while rest:
        rest = rest[file.write(rest) :]


def _complete_lines(file: IO[bytes]) -> tuple[int, int]:
    """Count newline-terminated lines, and the bytes up to the last; what follows is left of an interrupted write."""
    lines = size = end = 0
    file.seek(0)
    while block := file.read(_READ_BYTES):
        lines += block.count(b"\n")
        newline = block.rfind(b"\n")
        if newline >= 0:
            end = size + newline + 1
        size += len(block)
    return lines, end

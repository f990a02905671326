"""Output of a batch job to standard output, in the order of the input. Such a job cannot be continued."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.batch.reading import check_format, read_lines
from cluster.batch.records import to_jsonl
from cluster.batch.sidecar import Attempt

STANDARD_OUTPUT = ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")
"""Names of standard output."""


class StreamOutput:
    """Prints records to standard output as they are finished. An interrupted job cannot be continued."""

    attempt: Attempt | None = None

    def __init__(self, source: Path) -> None:
        """Count the lines of the input.

        Raises:
            ValueError: the input cannot be used, or it is the file that standard output goes to.
        """
        check_format(source)
        if sys.stdout is None:
            raise ValueError("output: standard output is closed; give a file")
        if os.path.samestat(os.stat(source), os.fstat(sys.stdout.fileno())):
            raise ValueError(f"output: standard output goes to {source}, which is the input; give another file")
        self.done = 0
        self.total = sum(1 for _ in read_lines(source, limit=0))

    def write(self, records: Sequence[Mapping[str, Any]], digest: str) -> None:
        """Print the records."""
        try:
            sys.stdout.buffer.write(to_jsonl(records))
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise ValueError(f"output: standard output cannot be written ({error.strerror})") from error

    def begin(self, attempt: Attempt | None) -> None:
        """Do nothing: a job without an output file cannot be continued."""

    def __enter__(self) -> StreamOutput:
        return self

    def __exit__(self, *error: object) -> None:
        pass

"""Short tests of the native implementation with sanitizers: `python -m tests.memory_service.native.sanitized`.

What a sanitizer finds ends the process that runs the tests, with a report.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from memory_service.native.build import SANITIZERS, build

TESTS = Path(__file__).parents[1]
SHORT = [
    "server/test_native_rows_door.py",
    "client/test_client.py",
    "client/test_native.py",
    "client/test_client_cache.py",
    "client/test_cache.py",
    "client/test_mapped_table.py",
]
_RUNTIME = {"address": "libasan.so", "undefined": "libubsan.so", "thread": "libtsan.so"}
_OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter never frees much of what it has
    # gRPC, protobuf and the interpreter are not built with the sanitizer, so it sees none of their locks.
    "TSAN_OPTIONS": "halt_on_error=1:die_after_fork=0:ignore_noninstrumented_modules=1:suppressions="
    f"{Path(__file__).parent / 'thread_suppressions.txt'}",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}


def main() -> int:
    """Run the tests under each sanitizer; return under how many they failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.memory_service.native.sanitized", description=__doc__)
    parser.add_argument("--only", choices=SANITIZERS, help="this sanitizer and not all three")
    only = parser.parse_args().only
    return sum(_run(sanitizer) != 0 for sanitizer in ([only] if only else SANITIZERS))


def _run(sanitizer: str) -> int:
    extension = build(sanitizer, jobs=1)
    environment = {
        **os.environ,
        **_OPTIONS,
        # The interpreter has neither: the runtime must be there first, and find what exceptions are thrown with.
        "LD_PRELOAD": f"{_library(_RUNTIME[sanitizer])} {_library('libstdc++.so')}",
        "ENGRAM_MEMORY_NATIVE": str(extension),
    }
    print(f"== {sanitizer}", flush=True)
    tests = [str(TESTS / name) for name in SHORT]
    # Not the test of memory: sanitizers take several times as much of it.
    command = [sys.executable, "-m", "pytest", *tests, "-k", "not cost_little", "--timeout", "300", "--capture", "no"]
    return subprocess.run(command, env=environment).returncode


def _library(name: str) -> str:
    command = ["g++", f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())

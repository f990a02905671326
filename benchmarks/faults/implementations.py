"""Which implementation of the wire the shards and clients of a run under faults use."""

from __future__ import annotations

import os
from typing import Any

from memory_service.native import SWITCH

CHOICES = ("python", "native", "mixed")


def environment(choice: str | None, number: int) -> dict[str, str]:
    """Variables of a process that is to use an implementation; by its number if they are mixed, by default if None."""
    if choice is None:
        return dict(os.environ)
    native = number % 2 if choice == "mixed" else choice == "native"
    return {**os.environ, SWITCH: str(int(native))}


def runtime_env(choice: str | None) -> dict[str, Any]:
    """A runtime environment of Ray whose processes use an implementation; by their ids if they are mixed."""
    if choice is None:
        return {}
    if choice == "mixed":
        return {"worker_process_setup_hook": _choose_by_process}
    return {"env_vars": {SWITCH: environment(choice, 0)[SWITCH]}}


def _choose_by_process() -> None:
    os.environ[SWITCH] = str(os.getpid() % 2)

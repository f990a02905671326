"""The implementations of the wire in this project, each to be tested where it is built."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from memory_service.native import SWITCH

IMPLEMENTATIONS = ("python", "native")


def choose(implementation: str, patch: pytest.MonkeyPatch) -> None:
    """Let shards and clients that are made from now on use an implementation; skip the test if it is not built."""
    if implementation == "native" and find_spec("memory_service.native._rows") is None:
        pytest.skip("the native implementation is not built: make native")
    for name, value in environment_of(implementation).items():
        patch.setenv(name, value)


def environment_of(implementation: str) -> dict[str, str]:
    """Variables by which a process uses an implementation."""
    return {SWITCH: str(int(implementation == "native"))}

"""Which tests run in a row in one of the processes of `make test`."""

from __future__ import annotations

RAY = "ray"


def group_of(test: str) -> str:
    """The group of a test, by its node id: its file, whose fixtures it shares, or for those that start a Ray one group.

    Two Rays at once are too much for a small machine. Tests that start one are in files tests/cluster/**/test_ray*.py.
    """
    file = test.split("::")[0]
    return RAY if file.startswith("tests/cluster/") and "/test_ray" in file else file

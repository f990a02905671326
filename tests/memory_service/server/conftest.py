"""Doors of both implementations."""

from __future__ import annotations

import pytest

from tests.conformance.implementations import IMPLEMENTATIONS, choose


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The implementation of the rows door of shards that the test starts."""
    choose(request.param, monkeypatch)
    return request.param

"""What an engine generates, for benchmarks that compare or time it."""

from __future__ import annotations

from collections.abc import Sequence

from reasoning.engine import Engine
from reasoning.request import Completion, Request


def generated_tokens(engine: Engine, requests: Sequence[Request]) -> list[list[int]]:
    """The new tokens of every request, run together; RuntimeError if one fails."""
    done = {result.id: result for result in engine.generate(requests)}
    failed = next((result for result in done.values() if not isinstance(result, Completion)), None)
    if failed is not None:
        raise RuntimeError(f"request {failed.id} failed: {failed.message}")
    return [list(one.token_ids) for request in requests if isinstance(one := done[request.id], Completion)]

"""The engine: requests in, completions out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reasoning.engine.config import EngineConfig, EngineStats

if TYPE_CHECKING:
    from reasoning.engine.engine import Engine, Event, QueueFullError

__all__ = ["Engine", "EngineConfig", "EngineStats", "Event", "QueueFullError"]


def __getattr__(name: str) -> Any:
    """Import the engine, and torch with it, when it is first used: `engram --help` needs the configuration alone."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from reasoning.engine import engine

    return getattr(engine, name)

"""The engine: requests in, completions out."""

from __future__ import annotations

from reasoning.engine.config import EngineConfig, EngineStats
from reasoning.engine.engine import Engine, Event, QueueFullError

__all__ = ["Engine", "EngineConfig", "EngineStats", "Event", "QueueFullError"]

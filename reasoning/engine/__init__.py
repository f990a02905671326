"""The engine: requests in, completions out."""

from __future__ import annotations

from reasoning.engine.config import EngineConfig, EngineStats
from reasoning.engine.engine import Engine, QueueFullError
from reasoning.request import Event

__all__ = ["Engine", "EngineConfig", "EngineStats", "Event", "QueueFullError"]

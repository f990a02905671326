"""Where models run: workers, the shards of their memory, and the engine of each worker."""

from __future__ import annotations

from dataclasses import dataclass, field

from reasoning.engine.config import EngineConfig

_LEAST = {"workers": 0, "shards": 1, "replicas": 1}


@dataclass(frozen=True)
class ClusterOptions:
    """Where models run: workers, the shards of their memory, and the engine of each worker."""

    workers: int = 1
    """Reasoning actors; 0 generates in this process, without Ray."""
    shards: int = 2
    """Memory shards to start, unless `memory` names a running one or `workers` is 0."""
    replicas: int = 1
    """Shards that hold each block of the memory."""
    address: str | None = None
    """HOST:PORT of the Ray cluster to join. None: a Ray started on this machine."""
    memory: str | None = None
    """HOST:PORT of a shard whose memory is used. None: the model's own tables."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """How each worker's engine is set up; with the device "cuda" a worker reserves a GPU of Ray."""

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name}: {getattr(self, name)} is too few; give at least {least}")

    @property
    def gpus(self) -> int:
        """GPUs of Ray that a worker reserves. With the device "auto" it reserves none, and on Ray sees none."""
        return int(self.engine.device == "cuda")

"""Where a job runs."""

from __future__ import annotations

from dataclasses import dataclass, field

from memory_service import ClientConfig
from reasoning.engine import EngineConfig


@dataclass(frozen=True)
class ClusterOptions:
    """Where a job runs."""

    workers: int = 1
    """Reasoning actors; 0 generates in this process, without Ray."""
    shards: int = 2
    """Memory shards to start, unless `memory` names one or `workers` is 0."""
    address: str | None = None
    """Ray cluster to join; None starts a local Ray."""
    memory: str | None = None
    """host:port of a shard that is running already."""
    batch_size: int = 16
    """Sequences that a worker runs together, and lines that it is given at a time."""
    replicas: int = 1
    """Shards that hold each block of the memory."""
    client: ClientConfig = field(default_factory=ClientConfig)
    """How workers ask for rows."""
    device: str = "auto"
    """Where models run, as `EngineConfig.device` has it; "cuda" reserves a GPU of Ray for each worker."""

    @property
    def gpus(self) -> int:
        """GPUs to reserve for a worker."""
        return int(self.device == "cuda")

    def engine_config(self) -> EngineConfig:
        """What every worker's engine is told."""
        return EngineConfig(max_batch=self.batch_size, device=self.device, client=self.client)

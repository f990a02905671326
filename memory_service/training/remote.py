"""Tables that learn in shards on the network."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future

import numpy as np
from numpy.typing import NDArray

from memory_service.client.client import MemoryClient
from memory_service.client.config import ClientConfig
from memory_service.control.shard_directory import ShardDirectory
from memory_service.memory import Rows
from memory_service.protocol.security import ClientSecurity
from memory_service.tables.spec import TableSpec
from memory_service.training.control import Attempt
from memory_service.training.pusher import GradientPusher


class RemoteLearningMemory:
    """The tables of a memory, for one rank of an attempt at training; see LearningMemory."""

    def __init__(
        self, directory: ShardDirectory, attempt: Attempt, rank: int, config: ClientConfig, unreachable_s: float = 30.0
    ) -> None:
        self.attempt = attempt
        self.client = MemoryClient(directory, config)
        """The client by which rows are looked up."""
        self._pusher = GradientPusher(directory, attempt, rank, unreachable_s)

    @classmethod
    def connect(
        cls,
        address: str,
        attempt: Attempt,
        rank: int,
        config: ClientConfig | None = None,
        timeout_s: float = 5.0,
        unreachable_s: float = 30.0,
        security: ClientSecurity | None = None,
    ) -> RemoteLearningMemory:
        """Connect by the address of any shard.

        Args:
            address: HOST:PORT of a shard's control port.
            attempt: the attempt that has begun on all shards.
            rank: rank of this worker.
            config: timeouts and hedging of lookups.
            timeout_s: seconds for all shards to describe themselves.
            unreachable_s: how long a shard may be out of reach of pushes.
            security: TLS and token; None for what the environment says.

        Raises:
            ShardUnavailable: a shard does not answer.
            MemoryServiceError: the memory holds no optimizer state.
        """
        security = security or ClientSecurity.from_environment()
        directory = ShardDirectory.read(address, timeout_s, security)
        return cls(directory, attempt, rank, config or ClientConfig(), unreachable_s)

    @property
    def specs(self) -> Mapping[str, TableSpec]:
        """The tables that learn, by name."""
        return self._pusher.specs

    @property
    def pushed_bytes(self) -> int:
        """Bytes of row ids and gradients pushed so far."""
        return self._pusher.pushed_bytes

    def lookup(self, table: str, rows: np.ndarray, step: int) -> Future[Rows]:
        """See LearningMemory.lookup."""
        min_version = self.attempt.version + step - self.attempt.step
        return self.client.lookup(table, rows, min_version=min_version)

    def push(
        self, step: int, table: str, rows: NDArray[np.int64], gradients: NDArray[np.float32], rate: float
    ) -> Future[None]:
        """See LearningMemory.push."""
        return self._pusher.push(step, table, rows, gradients, rate)

    def squared_norm(self, step: int) -> Future[float]:
        """See LearningMemory.squared_norm."""
        return self._pusher.squared_norm(step)

    def commit(self, step: int, scale: float) -> Future[None]:
        """See LearningMemory.commit."""
        return self._pusher.commit(step, scale)

    def close(self) -> None:
        """See LearningMemory.close."""
        self._pusher.close()
        self.client.close()

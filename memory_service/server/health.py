"""The standard health and reflection services of a control door, if their packages are installed.

Images made for GPUs often have grpcio alone. A shard serves rows there too; a probe finds no health service, rather
than a wrong answer.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import grpc

HEALTH = "grpc.health.v1.Health"


class StandardServices:
    """Reports whether a service is serving, and which methods it has."""

    def __init__(self, server: grpc.Server, service: str) -> None:
        """Add both services to a server that has not started; the status is "not serving" at first."""
        self._names = "", service
        self._health: Any = None
        if find_spec("grpc_health") and find_spec("grpc_reflection"):
            self._add(server)
            self.set_serving(False)

    def _add(self, server: grpc.Server) -> None:
        from grpc_health.v1 import health, health_pb2_grpc
        from grpc_reflection.v1alpha import reflection

        self._health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection((self._names[1], HEALTH, reflection.SERVICE_NAME), server)

    def set_serving(self, serving: bool) -> None:
        """Set the status that health checks return."""
        if self._health is None:
            return
        from grpc_health.v1.health_pb2 import HealthCheckResponse

        for name in self._names:
            self._health.set(name, HealthCheckResponse.SERVING if serving else HealthCheckResponse.NOT_SERVING)

    def leave(self) -> None:
        """Set the status to "not serving" for good."""
        if self._health is not None:
            self._health.enter_graceful_shutdown()

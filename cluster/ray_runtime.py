"""Join a Ray cluster, or start a private one on this machine for as long as it is needed."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from memory_service.protocol.addresses import parse_address

NAMESPACE = "engram"
_OBJECT_STORE_BYTES = 128 << 20  # rows and prompts are small and rows never pass through it
_PROBE_SECONDS = 5.0


@contextmanager
def ray_session(address: str | None = None, cpus: int = 1) -> Iterator[ModuleType]:
    """Yield the `ray` module, connected. On leaving, shut down what was started here and nothing else.

    Args:
        address: A cluster's "HOST:PORT" or "ray://HOST:PORT", an IPv6 host in brackets, or "auto"; None starts Ray on
            this machine.
        cpus: actors of one CPU each that a local Ray must have room for; it offers all CPUs even if these are fewer.

    Raises:
        ValueError: Ray is not installed, or the address cannot be reached.
    """
    ray = _import_ray(local=address is None)
    if ray.is_initialized():
        yield ray
        return
    if address is None:
        _start_local(ray, max(cpus, os.cpu_count() or 1))
    else:
        _join(ray, address)
    try:
        yield ray
    finally:
        ray.shutdown()


def fetch(refs: Any) -> Any:
    """Return what `ray.get` does, and raise the exception of a remote method itself, its remote traceback as cause."""
    import ray

    try:
        return ray.get(refs)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error


def _import_ray(local: bool) -> ModuleType:
    if local:
        # Read at import. A cluster has its own mode and token; a Ray that only this process talks to needs neither,
        # and the default would write a token into the home directory.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise ValueError("ray: not installed; run `pip install ray`, or give 0 `workers` to do without") from error
    return ray


def _start_local(ray: ModuleType, cpus: int) -> None:
    ray.init(
        address="local",
        num_cpus=cpus,
        object_store_memory=_OBJECT_STORE_BYTES,
        include_dashboard=False,
        namespace=NAMESPACE,
        logging_level="warning",
        log_to_driver=False,
    )


def _join(ray: ModuleType, address: str) -> None:
    _probe(address)
    try:
        ray.init(address=address, namespace=NAMESPACE, logging_level="warning", log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ValueError(f"address: cannot join Ray at {address} ({error}); is `ray start --head` running?") from error


def _probe(address: str) -> None:
    """Fail within seconds where nothing listens; Ray itself would retry for a minute."""
    text = address.removeprefix("ray://")
    if ":" not in text:
        return  # "auto" and the like: Ray looks the address up by itself
    head = parse_address(text)
    try:
        socket.create_connection((head.host, head.port), timeout=_PROBE_SECONDS).close()
    except OSError as error:
        raise ValueError(f"address: nothing answers at {address} ({error}); is `ray start --head` running?") from error

"""Listening: checks of ports before gRPC listens on them, which would share taken ones or fail without a reason."""

from __future__ import annotations

import errno
import socket

import grpc

from memory_service.protocol.addresses import Address


def check_free(host: str, port: int, purpose: str = "listen") -> None:
    """Check that this machine has the host's addresses and that the port is free on them.

    Args:
        host: address or name of this machine.
        port: the port; 0 for any free one.
        purpose: what the port is for, as errors put it: "cannot listen on HOST:PORT".

    Raises:
        OSError: no server can listen there.
    """
    address = Address(host, port)
    try:
        found = socket.getaddrinfo(address.host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise OSError(f"cannot {purpose} on {address}: no address is known for {address.host} ({error})") from error
    failures = [failure for family, _, _, _, target in found if (failure := _failure(family, target))]
    taken = [failure for failure in failures if failure.errno == errno.EADDRINUSE]
    if taken or len(failures) == len(found):  # a name may have addresses of families that this machine lacks
        why = (taken or failures)[0]
        raise OSError(
            f"cannot {purpose} on {address}: choose an address of this machine and a free port or 0 ({why})"
        ) from why


def bind(server: grpc.Server, host: str, port: int, credentials: grpc.ServerCredentials | None) -> int:
    """Let a server listen with these credentials, None for plaintext, and return its port.

    Raises:
        OSError: it cannot.
    """
    address = str(Address(host, port))
    try:
        return server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    except RuntimeError as error:
        raise OSError(f"cannot listen on {address}: choose a free port, or 0 for any ({error})") from error


def _failure(family: int, target: tuple[object, ...]) -> OSError | None:
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(target)
    except OSError as error:
        return error
    return None

"""Checks of ports before gRPC and Flight listen on them, which would share taken ports or fail without a reason."""

from __future__ import annotations

import errno
import socket

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


def _failure(family: int, target: tuple[object, ...]) -> OSError | None:
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(target)
    except OSError as error:
        return error
    return None

"""Network addresses as text: HOST:PORT, IPv6 hosts in brackets, and errors that say how to write them."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from memory_service.errors import InvalidRequest

MAX_PORT = 65535
_FORMAT = "write HOST:PORT, such as 10.0.0.5:7000, shard-0.example:7000 or [fd00::5]:7000"
_DIGITS = re.compile(r"[0-9]+")
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")


@dataclass(frozen=True)
class Address:
    """A host and a port; as text, HOST:PORT with an IPv6 host in brackets.

    Raises:
        InvalidRequest: the host or the port is not valid.
    """

    host: str
    """Hostname in lower case, or IP address; IPv6 in its shortest form and without brackets."""
    port: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "host", check_host(self.host))
        check_port(self.port)

    def __str__(self) -> str:
        return f"{bracketed(self.host)}:{self.port}"


def parse_address(text: str, field: str = "address") -> Address:
    """Read the address of a server that listens, so its port is 1 or above.

    Args:
        text: HOST:PORT.
        field: what the address is given for; errors begin with it.

    Raises:
        InvalidRequest: the text is not an address; the message shows how to write it.
    """
    if "://" in text:
        raise InvalidRequest(f"{field}: {_shown(text)} is a URL; {_FORMAT}")
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        raise InvalidRequest(f"{field}: {_shown(text)} has no port; {_FORMAT}")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise InvalidRequest(
            f"{field}: {_shown(text)} has an IPv6 host without brackets; write [{host[:50]}]:{port[:5]}"
            if _is_ip(host)
            else f"{field}: {_shown(text)} has more than one colon; {_FORMAT}"
        )
    if not _DIGITS.fullmatch(port) or not 1 <= int(port[:9]) <= MAX_PORT:
        raise InvalidRequest(f"{field}: {_shown(text)} has no port from 1 to {MAX_PORT}; {_FORMAT}")
    return Address(check_host(host, field), int(port))


def check_host(host: str, field: str = "host") -> str:
    """Return a hostname in lower case, or an IP address in its shortest form and without brackets.

    Raises:
        InvalidRequest: the text is neither; the message begins with `field`.
    """
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if "%" in bare:
        raise InvalidRequest(
            f"{field}: {_shown(host)} names a network interface; give an address that is valid on all, as fd00::5 is"
        )
    if _is_ip(bare):
        return str(ipaddress.ip_address(bare))
    if _is_hostname(host):
        return host.lower()
    name, colon, _ = host.rpartition(":")
    if colon and (_is_ip(name) or _is_hostname(name)):
        raise InvalidRequest(f"{field}: {_shown(host)} has a port; give the host alone")
    raise InvalidRequest(
        f"{field}: {_shown(host)} is no hostname or IP address; write it as in 10.0.0.5, shard-0.example or fd00::5"
    )


def check_port(port: int, field: str = "port") -> int:
    """Return a port to listen on or to call; 0 means any free port.

    Raises:
        InvalidRequest: the number is no port; the message begins with `field`.
    """
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= MAX_PORT:
        raise InvalidRequest(f"{field}: {port!r} is no port; give a number from 1 to {MAX_PORT}, or 0 for any free one")
    return port


def bracketed(host: str) -> str:
    """The host as it stands before a port or in a URL: IPv6 addresses in brackets."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def is_wildcard(host: str) -> bool:
    """Whether the host is 0.0.0.0 or ::, on which a server listens and which no client can call."""
    return _is_ip(host) and _unmapped(host).is_unspecified


def is_loopback(host: str) -> bool:
    """Whether only processes of the same machine can call the host."""
    return host.lower() == "localhost" or (_is_ip(host) and _unmapped(host).is_loopback)


def public_host(host: str, advertise: str | None) -> str:
    """The host by which clients reach a shard that listens on `host`.

    Raises:
        InvalidRequest: A host is not valid, or clients cannot call it.
    """
    advertised = check_host(host) if advertise is None else check_host(advertise, "advertise")
    if is_wildcard(advertised):
        raise InvalidRequest(
            f"advertise: clients cannot call {advertised}; give the name or address of this machine that they use"
        )
    return advertised


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _unmapped(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """IPv4 addresses may be written in IPv6 notation, as in ::ffff:127.0.0.1."""
    found = ipaddress.ip_address(text)
    return getattr(found, "ipv4_mapped", None) or found


def _is_hostname(text: str) -> bool:
    labels = text.removesuffix(".").split(".")
    if len(text) > 253 or _DIGITS.fullmatch(labels[-1]):  # 10.0.0.256 and 127.1 are mistyped IPv4 addresses
        return False
    return all(map(_LABEL.fullmatch, labels))


def _shown(text: str) -> str:
    return repr(text) if len(text) <= 80 else f"{text[:80]!r}..."

"""Addresses as people write them: what is read, what is refused, and which remedy the error names."""

from __future__ import annotations

import pytest

from memory_service import InvalidRequest
from memory_service.protocol.addresses import (
    Address,
    bracketed,
    check_host,
    check_port,
    is_loopback,
    is_wildcard,
    parse_address,
)


@pytest.mark.parametrize(
    ("text", "host", "port", "shown"),
    [
        ("127.0.0.1:7000", "127.0.0.1", 7000, "127.0.0.1:7000"),
        ("[::1]:7461", "::1", 7461, "[::1]:7461"),
        ("[FD00:0:0:0:0:0:0:5]:1", "fd00::5", 1, "[fd00::5]:1"),
        ("[2001:db8::0:5]:65535", "2001:db8::5", 65535, "[2001:db8::5]:65535"),
        ("Shard-0.example:7000", "shard-0.example", 7000, "shard-0.example:7000"),
        ("memory_0:07000", "memory_0", 7000, "memory_0:7000"),
        ("a.example.:80", "a.example.", 80, "a.example.:80"),
    ],
)
def test_an_address_is_read_and_written_the_same(text: str, host: str, port: int, shown: str) -> None:
    address = parse_address(text)
    assert (address.host, address.port) == (host, port)
    assert parse_address(str(address)) == address
    assert str(address) == shown


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("::1:7461", r"'::1:7461' has an IPv6 host without brackets; write \[::1\]:7461"),
        ("fd00::5:7000", r"write \[fd00::5\]:7000"),
        ("a:b:7000", "more than one colon; write HOST:PORT"),
        ("[::1]", "has no port; write HOST:PORT"),
        ("::1", "HOST:PORT"),
        ("localhost", "has no port; write HOST:PORT"),
        ("localhost:", "no port from 1 to 65535"),
        ("localhost:http", "no port from 1 to 65535"),
        ("localhost:0", "no port from 1 to 65535"),
        ("localhost:70000", "no port from 1 to 65535"),
        ("localhost:-1", "no port from 1 to 65535"),
        ("localhost:" + "9" * 5000, "no port from 1 to 65535"),
        ("localhost:７０００", "no port from 1 to 65535"),
        ("http://localhost:7000", "is a URL; write HOST:PORT"),
        (":7000", "no hostname or IP address"),
        ("[]:7000", "no hostname or IP address"),
        ("[localhost]:7000", "no hostname or IP address"),
        ("two words:7000", "no hostname or IP address"),
        (" localhost:7000", "no hostname or IP address"),
        ("10.0.0.256:7000", "no hostname or IP address"),
        ("127.1:7000", "no hostname or IP address"),
        ("a..b:7000", "no hostname or IP address"),
        ("-a:7000", "no hostname or IP address"),
        ("bücher:7000", "no hostname or IP address"),
        ("[fe80::1%eth0]:7000", "names a network interface"),
        ("", "has no port"),
    ],
)
def test_what_is_no_address_is_refused_with_its_remedy(text: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^peers: .*{message}") as raised:
        parse_address(text, "peers")
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize(("host", "bare"), [("::1", "::1"), ("[::1]", "::1"), ("::", "::"), ("LOCALHOST", "localhost")])
def test_a_host_may_have_brackets_and_loses_them(host: str, bare: str) -> None:
    assert check_host(host) == bare


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("10.0.0.5:7000", "has a port; give the host alone"),
        ("", "no hostname or IP address"),
        ("a host", "no hostname or IP address"),
        ("[", "no hostname or IP address"),
        ("x" * 300, "no hostname or IP address"),
    ],
)
def test_a_host_that_cannot_be_is_refused_by_field(host: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^advertise: .*{message}"):
        check_host(host, "advertise")


@pytest.mark.parametrize("port", [-1, 65536, 70000, True, 7.5, "7000", None])
def test_a_number_that_is_no_port_is_refused(port: object) -> None:
    with pytest.raises(InvalidRequest, match=r"^rows_port: .* is no port; give a number from 1 to 65535, or 0"):
        check_port(port, "rows_port")  # type: ignore[arg-type]


def test_an_address_checks_its_host_and_port() -> None:
    assert str(Address("[::1]", 7000)) == "[::1]:7000"
    assert Address("A", 1) == Address("a", 1)
    with pytest.raises(ValueError, match="'a b' is no hostname"):
        Address("a b", 1)
    with pytest.raises(ValueError, match="70000 is no port"):
        Address("a", 70000)


def test_only_ipv6_hosts_are_put_in_brackets_once() -> None:
    hosts = ("::1", "[::1]", "127.0.0.1", "localhost")
    assert [bracketed(host) for host in hosts] == ["[::1]", "[::1]", "127.0.0.1", "localhost"]


def test_wildcard_and_loopback_hosts_are_known_in_every_notation() -> None:
    wildcards = {"0.0.0.0", "::", "::ffff:0.0.0.0", "0:0:0:0:0:0:0:0"}
    loopbacks = {"127.0.0.1", "127.5.5.5", "::1", "::ffff:127.0.0.1", "localhost", "LocalHost"}
    others = {"10.0.0.5", "fd00::5", "shard-0.example", "127.example"}
    everything = wildcards | loopbacks | others
    assert {host for host in everything if is_wildcard(host)} == wildcards
    assert {host for host in everything if is_loopback(host)} == loopbacks

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from benchmarks.harness.hosts import Host, Network, missing, network
from benchmarks.harness.namespaces import Subnet
from memory_service import LocalMemory, MemoryClient

ROOT = Path(__file__).parents[3]
SNAPSHOT = ROOT / "models" / "tiny-code" / "memory"
PORT = 5000
KINDS = pytest.mark.parametrize("adjustable", [True, False], ids=["adjustable", "fixed"])
ECHO = """
import socket, sys
with socket.create_server((sys.argv[1], int(sys.argv[2]))) as server:
    print("listens", flush=True)
    while True:
        connection, peer = server.accept()
        print(peer[0], flush=True)
        while data := connection.recv(1 << 16):
            connection.sendall(data)
"""
CONNECT = """
import socket, sys, time
start = time.perf_counter()
with socket.create_connection((sys.argv[1], int(sys.argv[2]))):
    print(time.perf_counter() - start)
"""
RETURN = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as connection:
    connection.sendall(connection.makefile("rb").read() * int(sys.argv[3]))
"""
DATAGRAMS = """
import socket, sys
with socket.socket(type=socket.SOCK_DGRAM) as sender:
    for _ in range(100):
        sender.sendto(b"a", (sys.argv[1], int(sys.argv[2])))
"""
KILLED = """
import os, signal
from benchmarks.harness.hosts import network
with network(1) as net:
    print(net.hosts[0].command[-1], net.hosts[0].popen(["sleep", "60"], stdout=-3).pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module", autouse=True)
def _hosts_are_possible() -> None:
    if reason := missing():
        pytest.skip(f"no hosts on this machine: {reason}")


@contextmanager
def echo(host: Host) -> Iterator[tuple[subprocess.Popen[str], socket.socket]]:
    """A server on a host that returns what it gets and prints who connects, and a connection to it."""
    command = [sys.executable, "-c", ECHO, host.address, str(PORT)]
    with host.popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert line(process) == "listens"
            with socket.create_connection((host.address, PORT), timeout=30) as connection:
                yield process, connection
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> str:
    """The next line that it prints."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def output(host: Host, code: str, address: str, port: int = PORT) -> str:
    """What a script prints on a host that is given an address."""
    with host.popen([sys.executable, "-c", code, address, str(port)], stdout=subprocess.PIPE, text=True) as process:
        return process.communicate(timeout=60)[0].strip()


def round_trip_s(connection: socket.socket) -> float:
    start = time.perf_counter()
    connection.sendall(b"a")
    assert connection.recv(1) == b"a"
    return time.perf_counter() - start


def own_namespaces() -> set[str]:
    return set(re.findall(rf"^engram-{os.getpid()}-\S+", listed("netns", "list"), re.M))


def addresses() -> set[str]:
    """All addresses outside of namespaces."""
    return {address["local"] for link in json.loads(listed("-json", "address")) for address in link["addr_info"]}


def listed(*command: str) -> str:
    return subprocess.run(["ip", *command], capture_output=True, text=True, check=True).stdout


def runs(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@KINDS
def test_members_reach_each_other_under_addresses_of_their_own(adjustable: bool) -> None:
    with network(2, adjustable=adjustable) as net, echo(net.hosts[0]) as (server, connection):
        assert line(server) == net.here.address
        connection.close()
        output(net.hosts[1], CONNECT, net.hosts[0].address)
        assert line(server) == net.hosts[1].address
        with socket.create_server((net.here.address, PORT)) as here:
            output(net.hosts[1], CONNECT, net.here.address)
            assert here.accept()[1][0] == net.hosts[1].address
        assert len({net.here.address, *(host.address for host in net.hosts)}) == 3


def test_round_trips_grow_by_what_is_asked_for() -> None:
    with network(2, round_trip_s=0.02) as net, echo(net.hosts[0]) as (_, connection):
        assert min(round_trip_s(connection) for _ in range(5)) >= 0.02
        assert float(output(net.hosts[1], CONNECT, net.hosts[0].address)) >= 0.02
        net.set(round_trip_s=0.05)
        assert min(round_trip_s(connection) for _ in range(5)) >= 0.05
        net.set()
        assert min(round_trip_s(connection) for _ in range(20)) < 0.02


@KINDS
def test_members_send_and_receive_no_more_than_asked_for(adjustable: bool) -> None:
    with (
        network(2, gbit_s=0.1, adjustable=adjustable) as net,
        socket.create_server((net.here.address, PORT)) as here,
        ThreadPoolExecutor(2) as pool,
    ):
        for times in (0, 100):
            content = bytes(35_000 if times else 3_500_000)
            start = time.perf_counter()
            list(pool.map(there_and_back, net.hosts, [here] * 2, [content] * 2, [times] * 2))
            assert time.perf_counter() - start >= 0.45  # 0.56 without the bursts that links let through


def test_streams_arrive_whole_although_packets_are_lost() -> None:
    content = np.random.default_rng(0).bytes(16 << 20)
    with network(1, loss=0.01) as net, socket.create_server((net.here.address, PORT)) as here:
        assert there_and_back(net.hosts[0], here, content) == content


def there_and_back(host: Host, here: socket.socket, content: bytes, times: int = 1) -> bytes:
    """Send content from here to a host, which returns it so many times."""
    command = [sys.executable, "-c", RETURN, *map(str, here.getsockname()), str(times)]
    with host.popen(command), here.accept()[0] as connection:
        connection.sendall(content)
        connection.shutdown(socket.SHUT_WR)
        return connection.makefile("rb").read()


def test_packets_are_lost_with_the_probability_asked_for() -> None:
    with network(1) as net, socket.socket(type=socket.SOCK_DGRAM) as here:
        here.bind((net.here.address, PORT))
        here.settimeout(0.2)
        for loss, least, most in ((0, 100, 100), (0.2, 50, 99), (1, 0, 0)):
            net.set(loss=loss)
            output(net.hosts[0], DATAGRAMS, net.here.address)
            assert least <= arrived(here) <= most


def arrived(here: socket.socket) -> int:
    count = 0
    with suppress(TimeoutError):
        while here.recv(1):
            count += 1
    return count


@KINDS
def test_a_stalled_host_is_cut_off_and_goes_on_afterwards(adjustable: bool) -> None:
    with network(2, adjustable=adjustable) as net, ExitStack() as stack:
        stalled, other = (stack.enter_context(echo(host))[1] for host in net.hosts)
        start = time.perf_counter()
        net.stall(net.hosts[0], seconds=0.5)
        stalled.sendall(b"a")
        stalled.settimeout(0.2)
        with pytest.raises(TimeoutError):
            stalled.recv(1)
        round_trip_s(other)
        stalled.settimeout(30)
        assert stalled.recv(1) == b"a"
        assert time.perf_counter() - start >= 0.5


def test_a_later_stall_takes_the_place_of_an_earlier_one() -> None:
    with network(1) as net, echo(net.hosts[0]) as (_, connection):
        net.stall(net.hosts[0], seconds=600)
        net.stall(net.hosts[0], seconds=0.1)
        assert round_trip_s(connection) >= 0.1


def test_networks_do_not_touch_each_other() -> None:
    with network(1) as net, network(1) as other, echo(net.hosts[0]), echo(other.hosts[0]) as (_, connection):
        net.stall(net.hosts[0], seconds=600)
        round_trip_s(connection)
        assert output(other.hosts[0], CONNECT, net.hosts[0].address) == ""


@KINDS
@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_nothing_remains(adjustable: bool, error: type[BaseException] | None) -> None:
    children = psutil.Process().children()
    with pytest.raises(error) if error else ExitStack(), network(2, adjustable=adjustable) as net:
        assert net.here.address in addresses()
        process = net.hosts[1].popen(["sleep", "600"])
        net.stall(net.hosts[0], seconds=600)
        if error:
            raise error
    assert process.wait(timeout=10) == -signal.SIGKILL
    assert own_namespaces() == set()
    assert net.here.address not in addresses()
    assert psutil.Process().children() == children


def test_nothing_remains_of_hosts_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Subnet, member: int) -> None:
        raise RuntimeError("no room")

    monkeypatch.setattr(Subnet, "attach", fail)
    children = psutil.Process().children()
    with pytest.raises(RuntimeError, match="no room"), network(2):
        pass
    assert own_namespaces() == set()
    assert psutil.Process().children() == children


def test_what_a_killed_run_left_behind_is_removed() -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED], cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    namespace, pid = killed.stdout.split()
    assert runs(int(pid))
    with network(1):
        assert namespace not in listed("netns", "list")
        assert not runs(int(pid))


def test_rows_are_looked_up_from_shards_on_hosts() -> None:
    with network(2, round_trip_s=0.002) as net, ExitStack() as stack:
        local = stack.enter_context(closing(LocalMemory.load(SNAPSHOT)))
        address = stack.enter_context(shards(net))
        memory = stack.enter_context(closing(MemoryClient.connect(address)))
        for name, spec in local.specs.items():
            ids = np.random.default_rng(0).integers(0, spec.rows, (50, 4))
            start = time.perf_counter()
            rows, expected = (source.lookup(name, ids).result(timeout=30) for source in (memory, local))
            assert time.perf_counter() - start >= 0.002
            np.testing.assert_array_equal(rows.unique[rows.inverse], expected.unique[expected.inverse])


@contextmanager
def shards(net: Network) -> Iterator[str]:
    """A memory with a shard on each host, and the address of one."""
    peers = [f"{host.address}:{PORT}" for host in net.hosts]
    with ExitStack() as stack:
        for index, host in enumerate(net.hosts):
            options = ["--host", host.address, "--port", PORT, "--shard-index", index, "--peers", ",".join(peers)]
            command = [sys.executable, "-m", "memory_service.server.process", "--snapshot", SNAPSHOT, *options]
            process = stack.enter_context(host.popen(list(map(str, command)), cwd=ROOT, stdout=subprocess.PIPE))
            stack.callback(process.kill)
            assert process.stdout.readline()
        yield peers[0]


@pytest.mark.parametrize("wrong", [{"hosts": 0}, {"round_trip_s": -1}, {"loss": 2}, {"gbit_s": 0}])
def test_numbers_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"^{name} must .*, got {value}$"), network(**{"hosts": 1, **wrong}):
        pass


def test_conditions_change_only_where_they_may() -> None:
    with network(1, adjustable=False) as net, pytest.raises(RuntimeError, match="made with adjustable=False"):
        net.set(round_trip_s=0.001)


def test_who_may_not_make_hosts_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(RuntimeError, match="run as root"), network(1):
        pass

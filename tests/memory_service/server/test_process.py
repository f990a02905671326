"""Shards as plain processes."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import psutil
import pytest

from memory_service import LocalMemory, MemoryClient, ShardAddress, TableSpec, extend_snapshot
from memory_service.control.client import ControlClient
from memory_service.control.reshape import reshape, retire
from memory_service.server.config import ServeConfig
from memory_service.server.process import start


def test_one_process_serves_everything(processes, packed: np.ndarray, spec: TableSpec) -> None:
    process = processes.start("--port", "0")
    processes.addresses = [processes.ready(process)]
    rows = processes.connect().lookup("engram.1", np.arange(spec.rows), timeout_s=30).result()
    np.testing.assert_array_equal(rows.unique[rows.inverse], packed)


def test_three_processes_share_the_rows(processes, snapshot: Path, ids: np.ndarray) -> None:
    client: MemoryClient = processes(3).connect()
    rows = client.lookup("engram.1", ids, timeout_s=30).result()
    near = LocalMemory.load(snapshot).lookup("engram.1", ids).result()
    np.testing.assert_array_equal(rows.unique[rows.inverse], near.unique[near.inverse])
    client.close()  # a part is counted once its lookup has ended
    assert set(client.stats().shard_rows) == {"shard-0", "shard-1", "shard-2"}


def test_a_process_joins_and_takes_over_half_of_the_rows(processes, packed: np.ndarray, spec: TableSpec) -> None:
    first = processes.ready(processes.start())
    second = processes.ready(processes.start("--join", "shard-1"))
    with ControlClient(first) as control:
        one = control.describe().placement
    two = one.evolve(2, [ShardAddress("shard-0", first), ShardAddress("shard-1", second)])
    processes.addresses = [first]
    client = processes.connect()
    report = reshape(one, two)
    assert (report.prepared.copied, report.prepared.loaded) == (report.moved, 0)
    retire(two)
    rows = client.lookup("engram.1", np.arange(spec.rows), timeout_s=30).result()
    np.testing.assert_array_equal(rows.unique[rows.inverse], packed)
    client.close()  # a part is counted once its lookup has ended
    assert client.stats().shard_rows["shard-1"] > 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_although_a_client_is_connected(processes, number: int) -> None:
    process = processes.start()
    processes.addresses = [processes.ready(process)]
    processes.connect().lookup("engram.1", np.arange(10), timeout_s=30).result()
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "", "")


@pytest.mark.slow
def test_a_signal_ends_it_although_a_client_hangs(processes) -> None:
    process = processes.start()
    address = processes.ready(process)
    code = (
        "import sys, time, numpy as np; from memory_service import MemoryClient;"
        "client = MemoryClient.connect(sys.argv[1]); client.lookup('engram.1', np.arange(9)).result();"
        "print('joined', flush=True); time.sleep(600)"
    )
    root = Path(__file__).parents[3]
    client = subprocess.Popen([sys.executable, "-c", code, address], stdout=subprocess.PIPE, text=True, cwd=root)
    try:
        assert client.stdout is not None
        assert client.stdout.readline() == "joined\n"
        os.kill(client.pid, signal.SIGSTOP)
        os.waitpid(client.pid, os.WUNTRACED)  # the signal takes effect in its own time
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    finally:
        client.kill()
        client.communicate()
    assert process.returncode == 0
    assert "a client still held a stream open" in err


def test_a_client_may_leave_without_closing(processes, packed: np.ndarray) -> None:
    process = processes.start()
    address = processes.ready(process)
    code = (
        "import sys, numpy as np; from memory_service import MemoryClient;"
        "client = MemoryClient.connect(sys.argv[1]);"
        "print(client.lookup('engram.1', np.arange(9)).result().unique.sum());"
        "client.lookup('engram.1', np.arange(900))"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code, address], capture_output=True, text=True, cwd=root, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{packed[:9].sum()}\n", "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--snapshot", "/nowhere"], "no such directory"),
        (
            ["--snapshot", "{snapshot}", "--shard-index", "2", "--peers", "a:1,b:2"],
            "--shard-index: 2 is not among the 2",
        ),
        (["--snapshot", "{snapshot}", "--host", "192.0.2.1"], "192.0.2.1"),
        (["--snapshot", "{snapshot}", "--peers", "127.0.0.1:1"], "--port: 0 is not the port of shard 0 in --peers"),
        (["--join", "shard-1", "--host", "::"], "--advertise: clients cannot call ::"),
        (
            ["--join", "shard-1", "--metrics-host", "192.0.2.1", "--metrics-port", "0"],
            "cannot serve metrics on 192.0.2.1",
        ),
    ],
)
def test_what_keeps_it_from_starting_is_said_in_a_line(snapshot: Path, options: list[str], message: str) -> None:
    options = [option.format(snapshot=snapshot) for option in options]
    command = [sys.executable, "-m", "memory_service.server.process", *options]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=60)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_peers_must_name_one_of_several_generations(snapshot: Path, spec: TableSpec, packed: np.ndarray) -> None:
    extend_snapshot(snapshot, {spec: 255 - packed}, version=1)
    with pytest.raises(ValueError, match=r"^snapshot: .* generations \[0, 1\]: with `peers` name one, .*generation=1"):
        start(ServeConfig(snapshot, port=1, peers=["127.0.0.1:1"]))


def test_a_shard_alone_falls_back_to_the_last_good_generation(
    snapshot: Path, spec: TableSpec, packed: np.ndarray
) -> None:
    newer = extend_snapshot(snapshot, {spec: 255 - packed}, version=1)
    path = snapshot / newer.table(spec.name).files[0]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with start(ServeConfig(snapshot)) as server:
        rows, _, _ = server.shard.lookup(spec.name, np.arange(spec.rows), 1, spec.fingerprint)
    np.testing.assert_array_equal(rows, packed)


def test_a_shard_on_all_addresses_publishes_the_advertised_one(snapshot: Path, packed: np.ndarray) -> None:
    with start(ServeConfig(snapshot, host="0.0.0.0", advertise="127.0.0.1")) as server:
        with ControlClient(server.address) as control:
            [shard] = control.describe().placement.shards
        assert shard.address == server.address == server.listens_on.replace("0.0.0.0", "127.0.0.1")
        with closing(MemoryClient.connect(server.address)) as client:
            np.testing.assert_array_equal(client.lookup("engram.1", np.arange(9)).result().unique, packed[:9])


def test_a_process_says_where_it_listens_and_what_it_publishes(processes, packed: np.ndarray) -> None:
    process = processes.start("--host", "0.0.0.0", "--advertise", "localhost")
    line = process.stdout.readline()
    assert re.fullmatch(
        r"engram memory shard-0 \((python|native)\), listening on 0\.0\.0\.0:(\d+), serving on localhost:\2\n", line
    )
    with closing(MemoryClient.connect(line.split()[-1], 30)) as client:
        np.testing.assert_array_equal(client.lookup("engram.1", np.arange(9)).result().unique, packed[:9])


def test_a_process_with_peers_on_all_addresses_publishes_its_place_in_the_list(snapshot: Path, free_port: int) -> None:
    config = ServeConfig(snapshot, host="0.0.0.0", port=free_port, peers=[f"127.0.0.1:{free_port}"])
    with start(config) as server:
        assert server.address == f"127.0.0.1:{free_port}"


def test_shards_and_clients_work_over_ipv6(processes, ipv6: str, packed: np.ndarray, spec: TableSpec) -> None:
    process = processes.start("--host", "[::1]", "--metrics-port", "0", "--metrics-host", "::1")
    assert "for this machine only on http://[::1]:" in process.stdout.readline()
    first = processes.ready(process)
    assert re.fullmatch(r"\[::1\]:\d+", first)
    second = processes.ready(processes.start("--join", "shard-1", "--host", "::1"))
    with ControlClient(first) as control:
        one = control.describe().placement
    two = one.evolve(2, [ShardAddress("shard-0", first), ShardAddress("shard-1", second)])
    report = reshape(one, two)  # the second shard copies blocks from the first
    assert report.prepared.copied == report.moved > 0
    with closing(MemoryClient.connect(first, 30)) as client:
        rows = client.lookup("engram.1", np.arange(spec.rows), timeout_s=30).result()
    np.testing.assert_array_equal(rows.unique[rows.inverse], packed)


def test_metrics_that_strangers_can_read_of_a_locked_shard_are_said(processes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGRAM_MEMORY_TOKEN", "a-token-of-some-length")
    process = processes.start("--metrics-port", "0", "--metrics-host", "0.0.0.0", "--advertise", "shard-0.example")
    url = process.stdout.readline().split()[-1]
    assert url.startswith("http://shard-0.example:")
    processes.ready(process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert f"{url} asks for no certificate or token" in err


def test_a_process_may_open_a_file_for_every_stream(processes, snapshot: Path) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4000:
        pytest.skip(f"the hard limit of open files is {hard}")
    command = [sys.executable, "-c", "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 4000));"]
    command[-1] += "from memory_service.server.process import main; main(sys.argv[1:])"
    options = ["--snapshot", str(snapshot), "--streams"]
    for streams, warned in (("2000", False), ("5000", True)):
        process = processes.run([*command, *options, streams])
        processes.ready(process)
        assert psutil.Process(process.pid).rlimit(psutil.RLIMIT_NOFILE)[0] > 2000
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
        assert ("fewer than the limit of 5000: raise `ulimit -Hn`" in err) is warned

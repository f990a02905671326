"""Both doors with their locks: who gets in, and what the others are told."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from benchmarks.harness.certificates import Certificates
from memory_service import (
    BearerToken,
    ClientSecurity,
    LocalMemory,
    MemoryClient,
    MemoryServiceError,
    Placement,
    ResourceExhausted,
    ServerSecurity,
    ShardAddress,
    ShardUnavailable,
    Unauthenticated,
)
from memory_service.control.client import ControlClient
from memory_service.server.limits import DoorLimits
from memory_service.server.server import ShardServer
from memory_service.shard.shard import Shard
from protos import memory_pb2 as pb
from tests.conformance.memory import BLOCKS, LOOKUP, error_of

TOKEN = BearerToken("a-token-of-some-length")
OTHER_TOKEN = BearerToken("a-token-of-another-kind")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("strangers"))


@pytest.fixture
def serve(cluster, stack: ExitStack, implementation: str):
    def start(security: ServerSecurity, shards: int = 1) -> str:
        for index in range(shards):
            cluster.add(ShardServer(Shard(f"shard-{index}"), security=security).start())
        cluster.activate(1)
        return cluster.servers[0].address

    return start


def looked_up(address: str, security: ClientSecurity | None, rows: int = 50) -> np.ndarray:
    with closing(MemoryClient.connect(address, security=security)) as client:
        return client.lookup("engram.1", np.arange(rows)).result().unique


LOCKS = [("token",), ("tls",), ("tls", "token"), ("tls", "mutual"), ("tls", "mutual", "token")]


@pytest.fixture(params=LOCKS, ids="+".join)
def locks(request: pytest.FixtureRequest, certificates: Certificates) -> tuple[ServerSecurity, ClientSecurity]:
    server, client = ServerSecurity(), ClientSecurity()
    if "tls" in request.param:
        server, client = ServerSecurity(**certificates.issue("127.0.0.1")), ClientSecurity(certificates.ca)
    if "mutual" in request.param:
        server, client = (
            replace(server, client_ca_file=certificates.ca),
            replace(client, **certificates.issue("worker-7")),
        )
    if "token" in request.param:
        server, client = replace(server, token=TOKEN), replace(client, token=TOKEN)
    return server, client


def test_whoever_has_the_keys_gets_every_row(serve, locks, packed: np.ndarray) -> None:
    server, client = locks
    address = serve(server, shards=2)
    with closing(MemoryClient.connect(address, security=client)) as memory:
        rows = memory.lookup("engram.1", np.arange(len(packed))).result()
    np.testing.assert_array_equal(rows.unique[rows.inverse], packed)
    with ControlClient(address, security=client) as control:
        assert control.describe().shard == "shard-0"


def test_a_snapshot_is_taken_of_locked_shards(
    serve, certificates: Certificates, packed: np.ndarray, tmp_path: Path
) -> None:
    address = serve(ServerSecurity(**certificates.issue("127.0.0.1"), token=TOKEN), shards=2)
    with closing(MemoryClient.connect(address, security=ClientSecurity(certificates.ca, token=TOKEN))) as client:
        client.snapshot(tmp_path / "copy")
    rows = LocalMemory.load(tmp_path / "copy").lookup("engram.1", np.arange(len(packed))).result()
    np.testing.assert_array_equal(rows.unique[rows.inverse], packed)


def test_whoever_has_none_does_not_get_in(serve, locks) -> None:
    server, _ = locks
    with pytest.raises((Unauthenticated, ShardUnavailable), match=r"ENGRAM_MEMORY_(CA|TOKEN_FILE)"):
        looked_up(serve(server), ClientSecurity())


def knock(security: ClientSecurity, port: int, method: str = LOOKUP) -> tuple[grpc.StatusCode, int | None, str]:
    """Call a method of the rows door, send nothing and leave; return the code, the status and the details."""
    with closing(security.channel(f"127.0.0.1:{port}")) as rows:
        return error_of(lambda: next(rows.stream_stream(method)(iter(()), timeout=30)))


def test_the_rows_door_by_itself_is_locked(serve, locks, cluster) -> None:
    """A client that knows the port of the rows door without having passed the control door."""
    server, client = locks
    serve(server)
    port = cluster.servers[0].rows_port
    for keys in {ClientSecurity(), replace(client, token=None, cert_file=None, key_file=None)} - {client}:
        for method in (LOOKUP, BLOCKS):
            code, _, _ = knock(keys, port, method)
            assert code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNAVAILABLE)
    assert knock(client, port)[0] is grpc.StatusCode.OK


def test_a_token_is_checked_before_a_message_is_read(serve, cluster) -> None:
    serve(ServerSecurity(token=TOKEN))
    asked = threading.Event()
    silent = iter(lambda: asked.wait(30) and None, None)
    with closing(ClientSecurity().channel(f"127.0.0.1:{cluster.servers[0].rows_port}")) as rows:
        call = rows.stream_stream(LOOKUP)(silent, timeout=30)
        code, status, _ = error_of(lambda: next(call))
        assert (code, status) == (grpc.StatusCode.UNAUTHENTICATED, pb.STATUS_UNAUTHENTICATED)
    asked.set()


@pytest.mark.parametrize(
    ("client", "given"), [(ClientSecurity(), "none"), (ClientSecurity(token=OTHER_TOKEN), "another one")]
)
def test_a_missing_or_wrong_token_is_told_apart_from_a_dead_shard(
    serve, cluster, client: ClientSecurity, given: str
) -> None:
    address = serve(ServerSecurity(token=TOKEN))
    with ControlClient(address, security=client) as control, pytest.raises(Unauthenticated, match=f"got {given}"):
        control.describe()
    code, status, details = knock(client, cluster.servers[0].rows_port)
    assert (code, status) == (grpc.StatusCode.UNAUTHENTICATED, pb.STATUS_UNAUTHENTICATED)
    assert f"got {given}" in details


def test_two_tokens_in_one_call_are_refused(serve) -> None:
    address = serve(ServerSecurity(token=TOKEN))
    with ClientSecurity(token=TOKEN).channel(address) as channel:
        call = channel.unary_unary("/engram.memory.v1.MemoryShard/Describe")
        call(b"")
        with pytest.raises(grpc.RpcError, match="2 of them"):
            call(b"", metadata=[("authorization", OTHER_TOKEN.header)])


def test_probes_need_no_token_and_reflection_does(serve) -> None:
    address = serve(ServerSecurity(token=TOKEN))
    with grpc.insecure_channel(address) as channel:
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        with pytest.raises(grpc.RpcError) as raised:
            list(reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request])))
        assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("unknown authority", r"expired or not signed by .*strangers.*ca\.pem"),
        ("expired", "expired or not signed"),
        ("another host", "ENGRAM_MEMORY_SERVER_NAME"),
        ("plaintext shard", "speaks no TLS"),
        ("no client certificate", "ENGRAM_MEMORY_CERT"),
        ("client certificate of a stranger", "ENGRAM_MEMORY_CERT"),
        ("plaintext client", "set ENGRAM_MEMORY_CA"),
    ],
)
def test_a_connection_that_cannot_be_made_says_why(
    serve, certificates: Certificates, strangers: Certificates, case: str, message: str
) -> None:
    server, client = ServerSecurity(**certificates.issue("127.0.0.1")), ClientSecurity(certificates.ca)
    if case == "unknown authority":
        client = ClientSecurity(strangers.ca)
    elif case == "expired":
        server = ServerSecurity(
            **certificates.issue("127.0.0.1", not_after=datetime.now(timezone.utc) - timedelta(hours=1))
        )
    elif case == "another host":
        server = ServerSecurity(**certificates.issue("shard.example"))
    elif case == "plaintext shard":
        server = ServerSecurity()
    elif case == "plaintext client":
        client = ClientSecurity()
    else:
        server = replace(server, client_ca_file=certificates.ca)
    if case == "client certificate of a stranger":
        client = replace(client, **strangers.issue("worker-7"))
    with pytest.raises(ShardUnavailable, match=message):
        looked_up(serve(server), client)


def test_a_certificate_for_another_name_is_accepted_when_told(
    serve, certificates: Certificates, packed: np.ndarray
) -> None:
    address = serve(ServerSecurity(**certificates.issue("shard.example")))
    rows = looked_up(address, ClientSecurity(certificates.ca, server_name="shard.example"))
    np.testing.assert_array_equal(rows, packed[:50])


def test_certificates_for_ipv6_addresses_are_checked_at_both_doors(
    cluster, certificates: Certificates, packed: np.ndarray, ipv6: str, implementation: str
) -> None:
    security = ServerSecurity(**certificates.issue(ipv6), client_ca_file=certificates.ca, token=TOKEN)
    server = cluster.add(ShardServer(Shard("shard-0"), ipv6, security=security).start())
    cluster.activate(1)
    assert server.address.startswith("[::1]:")
    client = ClientSecurity(certificates.ca, **certificates.issue("worker-9"), token=TOKEN)
    np.testing.assert_array_equal(looked_up(server.address, client), packed[:50])
    with pytest.raises(Unauthenticated):
        looked_up(server.address, replace(client, token=None))


def test_a_client_with_a_certificate_is_counted_by_its_name(
    cluster, stack: ExitStack, certificates: Certificates, packed: np.ndarray, implementation: str
) -> None:
    security = ServerSecurity(**certificates.issue("127.0.0.1"), client_ca_file=certificates.ca)
    server = ShardServer(Shard("shard-0"), security=security, limits=DoorLimits(streams_per_client=1))
    cluster.add(server.start())
    mine, another = (ClientSecurity(certificates.ca, **certificates.issue(name)) for name in ("worker-7", "worker-8"))
    cluster.activate(1)
    clients = [MemoryClient.connect(server.address, security=keys) for keys in (mine, mine, another)]
    for client in clients:
        stack.callback(client.close)
    first, second, third = clients
    np.testing.assert_array_equal(first.lookup("engram.1", np.arange(9)).result().unique, packed[:9])
    with pytest.raises(ResourceExhausted, match=r"1 streams of worker-7 are open, the limit is 1 \(streams_per_client"):
        second.lookup("engram.1", np.arange(9)).result()
    np.testing.assert_array_equal(third.lookup("engram.1", np.arange(9)).result().unique, packed[:9])


def test_clients_find_their_keys_in_the_environment(
    serve, certificates: Certificates, packed: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token_file = tmp_path / "token"
    token_file.write_text(f"  {TOKEN.secret}\n")
    mine = certificates.issue("worker-8")
    for name, value in {
        "CA": certificates.ca,
        "CERT": mine["cert_file"],
        "KEY": mine["key_file"],
        "TOKEN": OTHER_TOKEN.secret,  # the file wins
        "TOKEN_FILE": token_file,
    }.items():
        monkeypatch.setenv(f"ENGRAM_MEMORY_{name}", str(value))
    address = serve(ServerSecurity(**certificates.issue("127.0.0.1"), client_ca_file=certificates.ca, token=TOKEN))
    np.testing.assert_array_equal(looked_up(address, None), packed[:50])
    with pytest.raises(ShardUnavailable):
        looked_up(address, ClientSecurity())  # what is given wins over the environment


def test_a_shard_copies_blocks_from_a_locked_peer_with_the_keys_of_its_environment(
    cluster, certificates: Certificates, packed: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    security = ServerSecurity(**certificates.issue("127.0.0.1"), token=TOKEN)
    for index in range(2):
        cluster.add(ShardServer(Shard(f"shard-{index}"), security=security).start())
    first, second = cluster.servers
    before = Placement.build(1, [ShardAddress("shard-0", first.address)], cluster.specs)
    first.shard.prepare(before, snapshot_uri=cluster.snapshot)
    first.shard.activate(before)
    after = Placement.build(2, [ShardAddress(s.shard.name, s.address) for s in cluster.servers], cluster.specs, 2)
    with pytest.raises(MemoryServiceError, match="ENGRAM_MEMORY_CA"):
        second.shard.prepare(after, before)
    monkeypatch.setenv("ENGRAM_MEMORY_CA", str(certificates.ca))
    monkeypatch.setenv("ENGRAM_MEMORY_TOKEN", TOKEN.secret)
    assert second.shard.prepare(after, before).copied == cluster.specs[0].blocks


def test_what_does_not_fit_together_is_refused(certificates: Certificates, tmp_path: Path) -> None:
    one, other = certificates.issue("one"), certificates.issue("other")
    text = tmp_path / "text"
    text.write_text("no PEM")
    cases = [
        (lambda: ServerSecurity(cert_file=one["cert_file"]), "the shard has no key_file"),
        (lambda: ServerSecurity(key_file=one["key_file"]), "the shard has no cert_file"),
        (lambda: ServerSecurity(client_ca_file=certificates.ca), "give cert_file and key_file"),
        (lambda: ServerSecurity(**one, client_ca_file=text), "text is no PEM file"),
        (lambda: ServerSecurity(one["cert_file"], other["key_file"]), r"one\.pem and key .*other\.key do not fit"),
        (lambda: ServerSecurity(tmp_path / "none", one["key_file"]), "none: No such file"),
        (lambda: ClientSecurity(**one), "give ca_file too"),
        (lambda: ClientSecurity(tmp_path / "none"), "CA .*none: No such file"),
        (lambda: ClientSecurity(text), "text is no PEM file"),
        (lambda: BearerToken("short"), "has 5 characters: use at least 16"),
        (lambda: BearerToken("sixteen and more, with spaces"), "spaces"),
        (lambda: BearerToken.from_file(tmp_path / "none"), "No such file"),
        (lambda: BearerToken.from_file(text), "text: the token has 6 characters"),
    ]
    for make, message in cases:
        with pytest.raises(ValueError, match=message):
            make()


def test_a_token_shows_nowhere() -> None:
    for shown in (repr(TOKEN), str(TOKEN), repr(ServerSecurity(token=TOKEN)), repr(ClientSecurity(token=TOKEN))):
        assert TOKEN.secret not in shown


@pytest.mark.parametrize("given", ["options", "environment"])
def test_a_shard_process_takes_its_locks(
    given: str,
    processes,
    certificates: Certificates,
    packed: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "token").write_text(TOKEN.secret)
    mine = certificates.issue("127.0.0.1")
    values = {"TLS_CERT": mine["cert_file"], "TLS_KEY": mine["key_file"], "TOKEN_FILE": tmp_path / "token"}
    options = [f"--{name.lower().replace('_', '-')}={value}" for name, value in values.items()]
    if given == "environment":
        for name, value in values.items():
            monkeypatch.setenv(f"ENGRAM_MEMORY_{name}", str(value))
        options = []
    address = processes.ready(processes.start(*options))
    np.testing.assert_array_equal(looked_up(address, ClientSecurity(certificates.ca, token=TOKEN)), packed[:50])
    with pytest.raises(Unauthenticated):
        looked_up(address, ClientSecurity(certificates.ca))


def test_a_shard_process_names_a_lock_that_does_not_fit(snapshot: Path, certificates: Certificates) -> None:
    command = [
        sys.executable,
        "-m",
        "memory_service.server.process",
        "--snapshot",
        str(snapshot),
        "--tls-key",
        str(certificates.ca),
    ]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=60, env=os.environ)
    assert (done.returncode, "the shard has no cert_file" in done.stderr) == (2, True)
    assert "Traceback" not in done.stderr

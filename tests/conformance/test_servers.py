"""Our own servers against the conformance suite, with and without locks; and the suite against servers that err."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import grpc
import numpy as np
import pytest

from benchmarks.harness.certificates import Certificates
from memory_service import BearerToken, InvalidRequest, RowFormat, ServerSecurity, TableSpec, write_snapshot
from memory_service.server import rows_door
from memory_service.server.server import ShardServer
from memory_service.shard import block_copy
from memory_service.shard.shard import Shard
from memory_service.shard.table import ShardTable
from protos import memory_pb2 as pb
from tests.conformance.check import Check, Inapplicable, Nonconformity
from tests.conformance.implementations import IMPLEMENTATIONS, choose
from tests.conformance.memory import Keys, Memory
from tests.conformance.suite import CHECKS
from tests.memory_service.conftest import Cluster, packed_of, spec_of

ROOT = Path(__file__).parents[2]
TOKEN = BearerToken("a-token-of-some-length")
SPECS = [
    spec_of(),
    spec_of("engram.2", dim=512, row_format=RowFormat.FP32, block_rows=1024),  # a block comes in several chunks
]


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    uri = tmp_path_factory.mktemp("snapshot") / "memory"
    write_snapshot(uri, {spec: packed_of(spec) for spec in SPECS}, version=3)
    return uri


def serve(snapshot: Path, specs: list[TableSpec], stack: ExitStack, security: ServerSecurity | None = None) -> str:
    """Start two shards that hold half of the blocks each; return the address of one."""
    cluster = Cluster(snapshot, specs, stack)
    for index in range(2):
        cluster.add(ShardServer(Shard(f"shard-{index}"), security=security).start())
    cluster.activate(4)
    return cluster.servers[0].address


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module", params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        choose(request.param, patch)
        yield request.param


@pytest.fixture(scope="module", params=["open", "locked"])
def memory(
    request: pytest.FixtureRequest, implementation: str, snapshot: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Memory]:
    with ExitStack() as stack:
        if request.param == "open":
            memory = Memory(serve(snapshot, SPECS, stack))
        else:
            certificates = Certificates(tmp_path_factory.mktemp("certificates"))
            security = ServerSecurity(**certificates.issue("127.0.0.1"), client_ca_file=certificates.ca, token=TOKEN)
            files = (certificates.ca, *reversed(certificates.issue("worker-1").values()))
            tls = grpc.ssl_channel_credentials(*(path.read_bytes() for path in files))
            memory = Memory(serve(snapshot, SPECS, stack, security), Keys(tls, token=TOKEN.secret))
        with memory:
            yield memory


LOCKS = {"callers-without-the-token-are-refused", "callers-without-tls-are-refused"}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_our_servers_conform(check: Check, memory: Memory, implementation: str) -> None:
    assert memory.described.implementation == implementation
    if check.name in LOCKS and not memory.keys.token:
        with pytest.raises(Inapplicable):
            check.run(memory)
    else:
        check.run(memory)


def no_clock(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(rows_door.QueueClock, "waited_us", lambda *_: 0)


def any_version(patch: pytest.MonkeyPatch) -> None:
    asked = Shard._check_asked
    patch.setattr(
        Shard, "_check_asked", lambda self, held, epoch, fingerprint, _: asked(self, held, epoch, fingerprint, 0)
    )


def another_row(patch: pytest.MonkeyPatch) -> None:
    gather = ShardTable.gather
    patch.setattr(ShardTable, "gather", lambda self, local, out: gather(self, local[::-1].copy(), out))


def long_replies(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(rows_door, "rows_a_chunk", lambda row_bytes: (5 << 20) // row_bytes)


def rows_first(patch: pytest.MonkeyPatch) -> None:
    def with_rows(header: pb.LookupReply, rows: np.ndarray) -> bytes:
        return pb.LookupReply(rows=rows.tobytes()).SerializeToString() + header.SerializeToString()

    patch.setattr(rows_door, "with_rows", with_rows)


def any_message(patch: pytest.MonkeyPatch) -> None:
    decode = rows_door._decode

    def lenient(kind: type, message: bytes) -> pb.LookupRequest:
        try:
            return decode(kind, message)
        except InvalidRequest:
            return pb.LookupRequest(request_id=1, timeout_ms=60_000)

    patch.setattr(rows_door, "_decode", lenient)


def another_digest(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(block_copy, "xxhash", SimpleNamespace(xxh3_128_digest=lambda rows: bytes(16)))


def one_error_for_all(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(rows_door, "status_of", lambda error: (pb.STATUS_INTERNAL, grpc.StatusCode.INTERNAL))


@pytest.mark.parametrize(
    ("fault", "name", "says"),
    [
        (no_clock, "an-expired-request-is-dropped", r"expected \[1, 3\], got \[1, 2, 3\]"),
        (any_version, "a-version-that-is-not-there-is-refused", "expected 'STATUS_OLD_VERSION', got 'STATUS_OK'"),
        (another_row, "rows-come-in-the-order-of-the-ids", r"row \d+ of 'engram\.2', in place 1: expected"),
        (long_replies, "large-answers-come-in-chunks", "the call ended in RESOURCE_EXHAUSTED"),
        (rows_first, "fields-of-replies-are-in-the-order-of-their-numbers", "field numbers: expected"),
        (any_message, "what-is-no-lookup-request-ends-the-stream", "bytes that are no message: expected INVALID_ARG"),
        (another_digest, "blocks-come-whole-and-in-order", "digest: expected"),
        (one_error_for_all, "an-unknown-table-is-refused", "expected 'STATUS_UNKNOWN_TABLE', got 'STATUS_INTERNAL'"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_server_that_errs_is_found(
    fault: Callable[[pytest.MonkeyPatch], None], name: str, says: str, snapshot: Path, stack: ExitStack
) -> None:
    patch = stack.enter_context(pytest.MonkeyPatch.context())
    choose("python", patch)
    fault(patch)
    memory = stack.enter_context(Memory(serve(snapshot, SPECS, stack)))
    [check] = [check for check in CHECKS if check.name == name]
    with pytest.raises(Nonconformity, match=says):
        check.run(memory)


def suite(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.conformance", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)


def test_the_suite_is_a_command(snapshot: Path, stack: ExitStack, tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    address = serve(snapshot, SPECS, stack, ServerSecurity(**certificates.issue("127.0.0.1"), token=TOKEN))
    (tmp_path / "token").write_text(f"{TOKEN.secret}\n")
    keys = ("--ca", str(certificates.ca), "--token-file", str(tmp_path / "token"))
    done = suite(address, *keys, "--only", "token")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok    callers-without-the-token-are-refused\n1 checks passed, 0 failed, 0 not applicable\n" in done.stdout
    done = suite(address, *keys[:2])
    assert (done.returncode, "cannot be asked: UNAUTHENTICATED" in done.stderr) == (2, True)


def test_the_command_names_what_was_expected_and_what_came(snapshot: Path, stack: ExitStack) -> None:
    with pytest.MonkeyPatch.context() as patch:
        choose("python", patch)
        no_clock(patch)
        done = suite(serve(snapshot, SPECS, stack), "--only", "request")
    assert done.returncode == 1
    assert "FAIL  an-expired-request-is-dropped: requests answered: expected [1, 3], got [1, 2, 3]" in done.stdout
    assert "1 failed" in done.stdout

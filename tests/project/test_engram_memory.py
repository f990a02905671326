"""engram-memory, the distribution for other engines: what it contains, and that it works by itself."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement

import memory_service
from benchmarks.harness.servers import memory_shards
from memory_service import MemoryClient, RowFormat, TableSpec, write_snapshot
from memory_service.control.client import ControlClient

ROOT = Path(__file__).parents[2]
PROJECT = ROOT / "engram-memory"
PACKAGES = ("memory_service", "protos")
SPEC = TableSpec(
    name="engram.1",
    layer=1,
    column_rows=(401, 409),
    max_ngram=3,
    heads=1,
    multipliers=(7, 11, 13),
    pad_id=2,
    token_map_sha256="ab" * 32,
    dim=64,
    row_format=RowFormat.BF16,
    block_rows=64,
)
ROWS = np.random.default_rng(0).integers(0, 255, (SPEC.rows, SPEC.row_bytes), np.uint8)
IDS = np.random.default_rng(1).integers(0, SPEC.rows, (50, 2))
ABSENT = {"torch", "ray", "triton", "kernels", "reasoning", "cluster", "prometheus_client", "grpc_health"}
LOOK_UP = "import sys, numpy as np; from memory_service import MemoryClient\n" + (
    "memory = MemoryClient.connect(sys.argv[1], 30)\n"
    "rows = memory.lookup('engram.1', np.load(sys.argv[2])).result(30)\n"
    "np.save(sys.argv[3], rows.unique[rows.inverse])\n"
    "memory.close()\n"
)
IMPORT_EVERYTHING = "import importlib, memory_service, pkgutil, protos\n" + (
    "for package in memory_service, protos:\n"
    "    for module in pkgutil.walk_packages(package.__path__, f'{package.__name__}.'):\n"
    "        importlib.import_module(module.name)\n"
)


def tracked(*below: str) -> list[str]:
    listed = subprocess.run(["git", "ls-files", *below], cwd=ROOT, capture_output=True, text=True, check=True)
    return listed.stdout.split()


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with an sdist and the wheel made of it, built from what git tracks."""
    clone = tmp_path_factory.mktemp("clone")
    for name in tracked("LICENSE", PROJECT.name, *PACKAGES):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, clone / name, follow_symlinks=False)
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", "out", PROJECT.name]
    done = subprocess.run(build, cwd=clone, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return clone / "out"


@pytest.fixture(scope="session")
def wheel(built: Path) -> Path:
    [found] = built.glob("*.whl")
    return found


def test_sdist_and_wheel_hold_the_two_packages_and_nothing_else(built: Path, wheel: Path):
    expected = set(tracked(*PACKAGES))
    assert {"memory_service/py.typed", "protos/memory.proto", "protos/memory_pb2.pyi"} <= expected
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in names if ".dist-info/" not in name} == expected
    [source] = built.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        members = [member for member in archive if not member.isdir()]
    assert all(member.isreg() for member in members), "links would lead nowhere"
    inner = {member.name.partition("/")[2] for member in members}
    own = {"LICENSE", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg"}
    assert {name for name in inner if ".egg-info/" not in name} == expected | own


def test_the_wheel_names_its_version_license_and_type_hints(wheel: Path):
    [found] = metadata.distributions(path=[str(wheel)])
    assert found.version == memory_service.__version__
    assert found.metadata["License-Expression"] == "Apache-2.0"
    assert "Typing :: Typed" in found.metadata.get_all("Classifier")
    assert found.metadata.get_payload().startswith("# engram-memory")  # type: ignore[union-attr]


def test_both_distributions_admit_the_same_versions():
    ranges = re.findall(r'"([\w-]+[<>=][^"]*)"', (PROJECT / "pyproject.toml").read_text())
    assert len(ranges) >= 9
    whole = (ROOT / "pyproject.toml").read_text()
    assert [line for line in ranges if f'"{line}"' not in whole] == []


class Environment:
    """A virtual environment that holds the wheel and, of what this one has, only what the wheel says that it needs.

    The needed distributions are linked file by file, which takes a second and no network; pip judges the result.
    """

    def __init__(self, folder: Path, wheel: Path) -> None:
        venv.create(folder, with_pip=False, symlinks=True)
        self._python = folder / "bin" / "python"
        self._wheel = wheel
        [self._site] = folder.glob("lib/python*/site-packages")
        self._pip("install", "--quiet", "--no-deps", "--no-index", str(wheel))

    def add_needed(self, extra: str = "") -> set[str]:
        """Link what the wheel needs, with an extra or without; returns the names."""
        [found] = metadata.distributions(path=[str(self._wheel)])
        needed = set(_needed(found.requires or [], extra))
        for name in needed:
            self._link(metadata.distribution(name))
        assert "No broken requirements" in self._pip("check")
        return needed

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(**self._command(arguments), capture_output=True, timeout=60)

    @contextmanager
    def shard(self, *arguments: str) -> Iterator[str]:
        """Address of a shard that runs in this environment."""
        command = self._command(["-m", "memory_service.server.process", *arguments])
        with subprocess.Popen(**command, stdout=subprocess.PIPE) as process:
            try:
                assert process.stdout is not None
                yield next(line for line in process.stdout if " serving on " in line).split()[-1]
            finally:
                process.kill()

    def _command(self, arguments: Iterable[str]) -> dict[str, object]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        return {"args": [self._python, *arguments], "env": environment, "cwd": self._site.parent, "text": True}

    def _pip(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "pip", "--python", str(self._python), *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def _link(self, distribution: metadata.Distribution) -> None:
        for file in distribution.files or []:
            source, target = Path(str(distribution.locate_file(file))), self._site / file
            if ".." not in file.parts and source.is_file() and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(source)


def _needed(lines: Iterable[str], extra: str = "") -> Iterator[str]:
    """Names of the distributions that requirements stand for, and of what those need in turn."""
    for requirement in map(Requirement, lines):
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            yield requirement.name
            yield from _needed(metadata.requires(requirement.name) or [])


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A folder with a snapshot and a file of row ids."""
    write_snapshot(tmp_path / "memory", {SPEC: ROWS})
    np.save(tmp_path / "ids.npy", IDS)
    return tmp_path


@pytest.mark.slow
def test_a_client_needs_nothing_but_the_wheel_and_its_dependencies(wheel: Path, stored: Path):
    fresh = Environment(stored / "fresh", wheel)
    needed = fresh.add_needed()
    assert needed >= {"grpcio", "protobuf", "pyarrow", "numpy", "ml_dtypes", "xxhash"}
    assert not needed & ABSENT
    for module in ABSENT:
        assert f"No module named '{module}'" in fresh.run("-c", f"import {module}").stderr
    with memory_shards(stored / "memory") as [shard]:  # with the interpreter of this process
        found = stored / "rows.npy"
        done = fresh.run("-c", LOOK_UP, shard.address, str(stored / "ids.npy"), str(found))
        assert done.stderr == ""
        np.testing.assert_array_equal(np.load(found), ROWS[IDS])

        [example] = re.findall(r"```python\n(.*?)```", (PROJECT / "README.md").read_text(), re.S)
        assert "127.0.0.1:7000" in example
        done = fresh.run("-c", example.replace("127.0.0.1:7000", shard.address))
        assert (done.stdout, done.stderr) == ("engram.1 float32 (2, 3, 64)\n", "")


@pytest.mark.slow
def test_a_shard_runs_from_the_wheel_and_its_extra_adds_metrics(wheel: Path, stored: Path):
    fresh = Environment(stored / "fresh", wheel)
    alone = fresh.add_needed()
    serve = ("--snapshot", str(stored / "memory"))
    with fresh.shard(*serve) as address, closing(MemoryClient.connect(address, 30)) as memory:
        rows = memory.lookup("engram.1", IDS).result(30)
        np.testing.assert_array_equal(rows.unique[rows.inverse], ROWS[IDS])
    refused = fresh.run("-m", "memory_service.server.process", *serve, "--metrics-port", "0")
    assert refused.returncode == 2
    assert "--metrics-port: prometheus_client is missing: pip install 'engram-memory[server]'" in refused.stderr

    added = fresh.add_needed("server") - alone
    assert added == {"grpcio-health-checking", "grpcio-reflection", "prometheus_client"}
    with fresh.shard(*serve, "--metrics-port", "0") as address, ControlClient(address) as control:
        assert control.describe().tables.keys() == {"engram.1"}
    assert fresh.run("-c", IMPORT_EVERYTHING).stderr == ""

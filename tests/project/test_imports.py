"""The house rules on imports, read from the source of every module."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAY_IMPORT = {
    "cluster": {"cluster", "reasoning", "memory_service", "protos"},
    "reasoning": {"reasoning", "memory_service", "kernels"},
    "memory_service": {"memory_service", "protos"},
    "kernels": {"kernels"},
    "protos": {"protos"},
}
OUTSIDE = {"cluster": {"ray", "torch"}, "reasoning": {"torch"}, "memory_service": set(), "kernels": {"torch", "triton"}}
GUARDED = {"ray", "torch", "triton", "transformers"}
MODULES = sorted(path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))
SERVER_SIDE = ("memory_service.shard", "memory_service.server", "memory_service.learning")


def imports_of(path: Path) -> Iterator[str]:
    """Dotted names that a module imports, those inside functions and under TYPE_CHECKING included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: use absolute imports"
            assert node.module
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in names() else node.module for name in submodules)


@cache
def names() -> Mapping[str, Path]:
    """Our modules and packages by dotted name."""
    found = {}
    for path in MODULES:
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def top_level(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports_of(path)}


def packages() -> list[str]:
    """Our packages and sub-packages by dotted name."""
    return sorted(name for name, path in names().items() if path.name == "__init__.py")


def graph(package: str, rooms: bool) -> dict[str, set[str]]:
    """Who imports whom inside a package: modules, or if `rooms` the modules and sub-packages that it directly holds."""
    depth = package.count(".") + 2
    edges: dict[str, set[str]] = defaultdict(set)
    for name, path in names().items():
        if not name.startswith(f"{package}."):
            continue
        for other in imports_of(path):
            if other in names() and other.startswith(f"{package}."):
                ends = [".".join(end.split(".")[:depth]) if rooms else end for end in (name, other)]
                if ends[0] != ends[1]:
                    edges[ends[0]].add(ends[1])
    return edges


def circle_in(edges: Mapping[str, set[str]]) -> list[str]:
    """Names along a circle of imports; empty if there is none."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for other in sorted(edges.get(name, ())):
            if circle := visit(other, [*path, name]):
                return circle
        done.add(name)
        return []

    return next((circle for name in sorted(edges) if (circle := visit(name, []))), [])


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    package = path.relative_to(ROOT).parts[0]
    found = top_level(path)
    assert not (found & MAY_IMPORT.keys()) - MAY_IMPORT[package]
    assert not (found & GUARDED) - OUTSIDE.get(package, set())
    assert not found & {"pickle", "benchmarks", "tests"}


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_no_files_import_each_other_in_a_circle(package):
    """Imports inside functions and under TYPE_CHECKING count too: a circle says that something is in the wrong room."""
    assert circle_in(graph(package, rooms=False)) == []


@pytest.mark.parametrize("package", packages())
def test_no_sub_packages_import_each_other_in_a_circle(package):
    assert circle_in(graph(package, rooms=True)) == []


def test_a_circle_of_imports_is_found():
    assert circle_in({"a": {"b"}, "b": {"c", "d"}, "d": {"b"}}) == ["b", "d", "b"]
    assert circle_in({"a": {"b", "c"}, "b": {"c"}}) == []
    assert "memory_service.tables.spec" in graph("memory_service", rooms=False)["memory_service.client.client"]


def test_a_memory_client_loads_no_module_of_the_serving_side():
    code = "import sys, memory_service; print(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100)
    loaded = done.stdout.split()
    assert "memory_service.client.client" in loaded, done.stderr
    assert [name for name in loaded if name.startswith(SERVER_SIDE)] == []
    assert not {"ray", "torch", "kernels", "reasoning"}.intersection(loaded)


@pytest.mark.parametrize(
    ("project", "folders"), [("", MAY_IMPORT.keys()), ("engram-memory", {"memory_service", "protos"})]
)
def test_every_third_party_import_is_declared(project, folders):
    """What the packages of a distribution import is what its pyproject.toml installs."""
    declared = (ROOT / project / "pyproject.toml").read_text()
    distributions = {"google": "protobuf", "grpc": "grpcio", "grpc_health": "grpcio-health-checking"}
    distributions |= {"grpc_reflection": "grpcio-reflection", "grpc_tools": "grpcio-tools", "yaml": "pyyaml"}
    imported = set().union(*(top_level(path) for path in MODULES if path.relative_to(ROOT).parts[0] in folders))
    for name in sorted(imported - folders - set(sys.stdlib_module_names)):
        assert f'"{distributions.get(name, name)}' in declared, f"{name} is imported but not in pyproject.toml"

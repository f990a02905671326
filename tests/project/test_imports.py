"""The house rules on imports, read from the source of every module."""

import ast
import sys
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


def imported(path: Path) -> set[str]:
    """Top-level names that a module imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: use absolute imports"
            names.add(node.module or "")
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    package = path.relative_to(ROOT).parts[0]
    names = imported(path)
    assert not (names & MAY_IMPORT.keys()) - MAY_IMPORT[package]
    assert not (names & GUARDED) - OUTSIDE.get(package, set())
    assert not names & {"pickle", "benchmarks", "tests"}


def test_every_third_party_import_is_declared():
    """What the packages import is what pyproject.toml installs."""
    declared = (ROOT / "pyproject.toml").read_text()
    distributions = {"google": "protobuf", "grpc": "grpcio", "grpc_health": "grpcio-health-checking"}
    distributions |= {"grpc_reflection": "grpcio-reflection", "grpc_tools": "grpcio-tools", "yaml": "pyyaml"}
    ours = MAY_IMPORT.keys() | set(sys.stdlib_module_names)
    for name in sorted(set().union(*map(imported, MODULES)) - ours):
        assert f'"{distributions.get(name, name)}' in declared, f"{name} is imported but not in pyproject.toml"

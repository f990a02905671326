"""What arrives on the wire or lies on disk is never executed: no pickle, marshal or the like in what reads it.

Ray pickles what its own actors are given and return, inside a cluster that its token guards; rows, snapshots and models
never go that way.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted(
    path
    for package in ("memory_service", "protos", "reasoning", "kernels", "cluster")
    for path in (ROOT / package).rglob("*.py")
)
EXECUTING = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
LOADERS = {("torch", "load"), ("torch", "save"), ("np", "load"), ("numpy", "load"), ("pa", "deserialize")}
BUILTINS = {"eval", "exec"}


def offences(source: str) -> list[str]:
    """What in a module could execute data: imports, loaders that unpickle, eval and exec."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in EXECUTING]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in EXECUTING:
            found.append(node.module or "")
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found += [f"{node.value.id}.{node.attr}"] * ((node.value.id, node.attr) in LOADERS)
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            found.append("allow_pickle")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in BUILTINS:
            found.append(node.func.id)
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_is_read_is_executed(path: Path):
    assert offences(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from cloudpickle import loads",
        "def f():\n    import marshal as m",
        "np.load(path)",
        "load(path, allow_pickle=True)",
        "torch.load(path)",
        "eval(text)",
    ],
)
def test_every_way_to_execute_data_is_noticed(source: str):
    assert len(offences(source)) == 1

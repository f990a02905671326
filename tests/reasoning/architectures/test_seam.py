"""Another architecture is saved, loaded and served by the unchanged engine, its answers as exact as DeepSeek-V3's."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from memory_service import LocalMemory, write_snapshot
from reasoning.architectures import registry
from reasoning.architectures.base import ModelConfig
from reasoning.checkpoint.load import load_model
from reasoning.checkpoint.save import save_model
from reasoning.config.engram import EngramConfig
from reasoning.engine import Engine, EngineConfig
from reasoning.engram.memory_config import MEMORY_DIR
from reasoning.engram.model_hasher import build_hasher, table_specs
from reasoning.engram.row_lookup import RowLookup
from reasoning.model.batch import Batch
from reasoning.request import Request, SamplingParams
from reasoning.text.tokenizer import Tokenizer
from tests.reasoning.architectures.toy import STREAMS, Toy, ToyBackbone, ToyCache, ToyConfig
from tests.reasoning.conftest import byte_tokenizer, random_rows

MEMORY = EngramConfig(layer_ids=(0, 1), n_heads=2, head_dim=8, vocab_size=(500, 500), pad_token_id=256, conv_kernel=2)
SYSTEM = "Whatever is asked, answer it in a word or two, and never in more than that: it is late. "
PROMPTS = ["a", SYSTEM, SYSTEM + "Why?", "é😀" * 9, "x" * 64, "def f(x):" * 9]
NEW = 10


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setitem(registry.ARCHITECTURES, "toy", Toy())


@pytest.fixture(scope="module")
def toy_dir(tmp_path_factory):
    """A random model of the other architecture, with its tokenizer and its memory."""
    directory = tmp_path_factory.mktemp("toy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.ARCHITECTURES, "toy", Toy())
        model = ToyBackbone(ToyConfig(engram=MEMORY)).initialise(torch.Generator().manual_seed(3))
        save_model(model, directory, torch.float32)
    byte_tokenizer().save(str(directory / "tokenizer.json"))
    specs = table_specs(MEMORY, build_hasher(MEMORY, Tokenizer.from_file(directory)))
    write_snapshot(directory / MEMORY_DIR, {spec: random_rows(spec) for spec in specs})
    return directory


@pytest.fixture(scope="module")
@torch.inference_mode()
def expected(toy_dir):
    """Greedy tokens of each prompt, every token from the whole sequence anew: no cache, no engine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.ARCHITECTURES, "toy", Toy())
        model = load_model(toy_dir)
    tokenizer = Tokenizer.from_file(toy_dir)
    hasher = build_hasher(MEMORY, tokenizer)
    lookup = RowLookup(hasher, table_specs(MEMORY, hasher), LocalMemory.load(toy_dir / MEMORY_DIR), timeout_s=5)
    found = []
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt)
        for _ in range(NEW):
            hidden = model(Batch.of_whole_sequences(torch.tensor([ids])), lookup.request([ids], [[]]))
            assert hidden.shape == (len(ids), STREAMS, model.config.width)
            ids.append(int(model.logits(hidden[-1:]).argmax()))
        found.append(tuple(ids[-NEW:]))
    return found


@pytest.mark.parametrize(
    "config",
    [
        EngineConfig(max_batch=1, drafts="none"),
        EngineConfig(max_batch=6, drafts="none"),
        EngineConfig(max_batch=3, prefill_tokens=7, drafts="ngram"),
        EngineConfig(max_batch=4, prefill_tokens=30, drafts="mtp", cohorts=2),
        EngineConfig(max_batch=6, cache_tokens=320, drafts="auto"),
    ],
    ids=["alone", "together", "chunks and n-grams", "chunks and prediction", "few pages"],
)
def test_an_engine_serves_another_architecture_exactly(toy_dir, expected, config):
    engine = Engine.from_pretrained(toy_dir, config=config)
    assert isinstance(engine.runner.cache, ToyCache)
    sampling = SamplingParams(max_new_tokens=NEW, ignore_eos=True)
    for _ in range(2):  # the second time prefixes are found in the cache
        requests = [Request(str(i), prompt, sampling=sampling) for i, prompt in enumerate(PROMPTS)]
        found = {result.id: result.token_ids for result in engine.generate(requests)}
        assert [found[str(i)] for i in range(len(PROMPTS))] == expected
        engine.check_integrity()
    stats = engine.stats()
    assert (stats.reused_tokens > 0) == (config.cache_tokens is None)
    assert (stats.drafted_tokens > 0) == (config.drafts in ("mtp", "auto"))  # what repeats nothing has no n-grams
    engine.close()


def test_the_expected_tokens_are_many_different_ones(expected):
    assert len({token for tokens in expected for token in tokens}) > 20


def test_what_training_asks_for_may_be_left_out():
    backbone = ToyBackbone(ToyConfig(engram=MEMORY)).initialise(torch.Generator().manual_seed(0)).train()
    batch = Batch.of_whole_sequences(torch.arange(6).view(2, 3))
    backbone(batch)
    assert list(backbone.expert_loads()) == []
    assert list(backbone.gate_means()) == []
    assert float(backbone.sequence_balance(batch)) == 0.0
    assert backbone.checkpoint_activations is False


def test_a_cache_reports_its_size_whatever_it_keeps():
    cache = ToyBackbone(ToyConfig(engram=MEMORY)).new_cache(5)
    assert (cache.pages, cache.dtype, cache.device.type) == (5, torch.float32, "cpu")
    assert cache.bytes_per_token == 4 * 16 * (2 + 2 / 4 + 2 * STREAMS)


def test_a_checkpoint_of_another_architecture_is_checked_by_its_own_shapes(toy_dir, tmp_path):
    raw = json.loads((toy_dir / "config.json").read_text())
    for name in ("model.safetensors", "tokenizer.json"):
        (tmp_path / name).symlink_to(toy_dir / name)
    (tmp_path / "config.json").write_text(json.dumps(raw | {"width": 24}))
    with pytest.raises(ValueError, match=r"tensor toy\.embed\.weight has shape \(257, 16\), .* for \(257, 24\)"):
        load_model(tmp_path)


@pytest.mark.parametrize("name", ["llama", "deepseek_v4", None, 5, ["deepseek_v3"], ""])
def test_an_unknown_model_type_is_refused_with_those_that_are_known(tmp_path, name):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": name}))
    known = r"expected one of 'deepseek_v3', 'kimi_k2', 'toy'"
    with pytest.raises(ValueError, match=rf"model_type: .* is not supported; {known}"):
        registry.read_model_config(tmp_path)


def test_a_model_type_that_is_absent_means_deepseek_v3(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    config: ModelConfig = registry.read_model_config(tmp_path)
    assert config.to_dict()["model_type"] == "deepseek_v3"


def test_only_the_registry_and_the_presets_of_new_models_name_an_architecture():
    root = Path(__file__).parents[3]
    named = [
        path.relative_to(root).as_posix()
        for package in ("reasoning", "cluster")
        for path in (root / package).rglob("*.py")
        if re.search(r"reasoning\.architectures\.(?!base|registry|weights)\w+", path.read_text())
    ]
    inside = [name for name in named if name.startswith("reasoning/architectures/deepseek_v3/")]
    assert len(inside) > 5
    assert sorted(set(named) - set(inside)) == ["reasoning/architectures/registry.py", "reasoning/runs/presets.py"]

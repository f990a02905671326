"""What can be wrong with a request, a model directory or a memory, and that the rest goes on."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from concurrent.futures import Future, wait

import numpy as np
import pytest

from memory_service import FingerprintMismatch, LocalMemory, ShardUnavailable, SnapshotError, UnknownTable
from reasoning.checkpoint.load import load_model
from reasoning.engine import Engine
from reasoning.engine.config import EngineConfig
from reasoning.request import Completion, Request, RequestFailure, SamplingParams
from reasoning.text.tokenizer import Tokenizer
from tests.reasoning.conftest import byte_tokenizer

SHORT = SamplingParams(max_new_tokens=3, ignore_eos=True)


@pytest.fixture(scope="module")
def parts(tiny_dir):
    return load_model(tiny_dir), Tokenizer.from_file(tiny_dir), LocalMemory.load(tiny_dir / "memory")


@pytest.mark.parametrize(
    ("request_", "field", "message"),
    [
        (Request("bad", ""), "prompt", "is empty; give at least one token"),
        (Request("bad", prompt_token_ids=()), "prompt_token_ids", "is empty; give at least one token"),
        (Request("bad", "x" * 64), "prompt", "64 tokens leave no room in a context of 64; shorten the prompt"),
        (Request("bad", prompt_token_ids=(1,) * 70), "prompt_token_ids", "70 tokens leave no room in a context of 64"),
        (Request("bad", prompt_token_ids=(1, 257)), "prompt_token_ids", "257 at position 1 is not a token id from 0"),
        (Request("bad", prompt_token_ids=(-1,)), "prompt_token_ids", "-1 at position 0 is not a token id"),
        (Request("bad", prompt_token_ids=(1, True)), "prompt_token_ids", "True at position 1 is not a token id"),
        (Request("bad", prompt_token_ids=(1, 2.0)), "prompt_token_ids", "2.0 at position 1 is not a token id"),
        (Request("bad", prompt_token_ids="abc"), "prompt_token_ids", "'abc' is not a list of token ids"),
        (Request("bad", prompt_token_ids=7), "prompt_token_ids", "7 is not a list of token ids"),
        (Request("bad", "a", (1,)), "prompt", "give exactly one of prompt and prompt_token_ids"),
        (Request("bad"), "prompt", "give exactly one of prompt and prompt_token_ids"),
        (Request("bad", "a\ud800"), "prompt", "without unpaired surrogates"),
        (Request("bad", 5), "prompt", "cannot be tokenized"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_a_bad_request_fails_by_itself(parts, request_, field, message):
    engine = Engine(*parts)
    results = list(
        engine.generate([Request("before", "a", sampling=SHORT), request_, Request("after", "b", sampling=SHORT)])
    )
    assert sorted(result.id for result in results if isinstance(result, Completion)) == ["after", "before"]
    (failure,) = (result for result in results if isinstance(result, RequestFailure))
    assert (failure.id, failure.field, failure.retryable) == ("bad", field, False)
    assert message in failure.message


def test_text_beyond_the_models_vocabulary_is_refused(plain_dir, tmp_path):
    shutil.copytree(plain_dir, tmp_path, dirs_exist_ok=True)
    byte_tokenizer("import").save(str(tmp_path / "tokenizer.json"))
    (failure,) = Engine.from_pretrained(tmp_path).generate([Request("0", "import")])
    assert (failure.field, failure.message) == ("prompt", "257 at position 0 is not a token id from 0 to 256")


class Flaky:
    """A memory of which some lookups raise, fail later or never end; the others are answered."""

    def __init__(self, memory, troubles):
        self.memory, self.specs, self.troubles = memory, memory.specs, dict(troubles)
        self.calls = 0

    def lookup(self, table, rows, timeout_s=None):
        self.calls += 1
        trouble = self.troubles.get(self.calls)
        if trouble is None:
            future = self.memory.lookup(table, rows, timeout_s)
            wait([future])  # so that what runs together does not depend on threads
            return future
        error = ShardUnavailable("shard shard-1 at 10.0.0.1:7000 went away")
        if trouble == "raises":
            raise error
        future = Future()
        if trouble == "fails":
            future.set_exception(error)
        return future


# Lookups by number, two layers each: the prompts of a, b and c on arrival, then the next tokens of a and b together.
@pytest.mark.parametrize("trouble", ["raises", "fails", "silent"])
@pytest.mark.parametrize(
    ("call", "lost"), [(1, "a"), (4, "b"), (6, "c"), (7, "ab"), (8, "ab")], ids=["a", "b", "c", "layer 0", "layer 2"]
)
def test_a_failing_lookup_fails_only_the_requests_it_serves(parts, trouble, call, lost):
    model, tokenizer, memory = parts
    config = EngineConfig(max_batch=2, lookup_timeout_s=0.02)
    group = [Request(name, prompt, sampling=SHORT) for name, prompt in (("a", "x"), ("b", "xy"), ("c", "xyz"))]
    expected = {r.id: r for r in Engine(model, tokenizer, memory).generate(group)}
    engine = Engine(model, tokenizer, Flaky(memory, {call: trouble}), config)
    results = {result.id: result for result in engine.generate(group)}
    engine.check_integrity()
    for name in "abc":
        if name in lost:
            assert isinstance(results[name], RequestFailure)
            assert (results[name].field, results[name].retryable) == ("memory", True)
            reason = "did not come within 0.02 s" if trouble == "silent" else "shard-1 at 10.0.0.1"
            assert reason in results[name].message
        else:
            assert results[name] == expected[name]
    assert {result.id: result for result in engine.generate(group)} == expected


def test_a_new_request_that_fails_does_not_disturb_running_requests(parts):
    model, tokenizer, memory = parts
    first = Request("a", "x", sampling=SamplingParams(max_new_tokens=6, ignore_eos=True))
    (expected,) = Engine(model, tokenizer, memory).generate([first])
    flaky = Flaky(memory, {})
    engine = Engine(model, tokenizer, flaky, EngineConfig(max_batch=2))
    engine.add(first)
    assert engine.step() == engine.step() == []
    flaky.troubles[flaky.calls + 2] = "fails"  # its layer 2: the step is under way by then
    failure, completion = engine.generate([Request("b", "y", sampling=SHORT)])
    assert (failure.id, failure.field) == ("b", "memory")
    assert completion == expected


def test_a_memory_that_goes_away_and_returns_fails_only_requests_in_flight(parts):
    model, tokenizer, memory = parts
    group = [Request(str(n), "x" * (n + 1), sampling=SamplingParams(max_new_tokens=4)) for n in range(6)]
    expected = {r.id: r for r in Engine(model, tokenizer, memory).generate(group)}
    flaky = Flaky(memory, {})
    engine = Engine(model, tokenizer, flaky, EngineConfig(max_batch=3))
    for request in group:
        engine.add(request)
    results = engine.step()
    flaky.troubles = {flaky.calls + n: "fails" for n in range(1, 3)}  # gone for one lookup of all that decode
    while not engine.idle:
        results += engine.step()
        engine.check_integrity()
    failed = {result.id for result in results if isinstance(result, RequestFailure)}
    assert failed
    assert {r.id: r for r in results if r.id not in failed} == {k: v for k, v in expected.items() if k not in failed}
    assert {r.id: r for r in engine.generate(group)} == expected


def test_logits_that_are_nan_fail_only_their_request(parts):
    model, tokenizer, memory = parts
    good, bad = Request("good", "x", sampling=SHORT), Request("bad", "y", sampling=SHORT)
    (expected,) = Engine(model, tokenizer, memory).generate([good])
    broken = copy.deepcopy(model)
    broken.embed_tokens.weight.data[tokenizer.encode("y")[0]] = float("nan")
    engine = Engine(broken, tokenizer, memory)
    results = {result.id: result for result in engine.generate([bad, good])}
    engine.check_integrity()
    assert results["good"] == expected
    assert (results["bad"].field, results["bad"].retryable) == ("model", False)


@pytest.mark.parametrize(
    ("tokenizer", "differing"),
    [
        (byte_tokenizer("import"), "multipliers, token_map_sha256"),
        (byte_tokenizer(reverse=True), "token_map_sha256"),  # compresses to as many ids, but to others
    ],
    ids=["larger", "as large"],
)
def test_a_wrong_tokenizer_is_refused(parts, tokenizer, differing):
    model, _, memory = parts
    with pytest.raises(FingerprintMismatch, match=rf"table 'engram\.0': .*; they differ in .*{differing}\. Use"):
        Engine(model, Tokenizer(tokenizer), memory)


def test_a_tokenizer_that_config_json_contradicts_is_refused(tiny_dir, tmp_path):
    shutil.copytree(tiny_dir, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "engram_compressed_vocab_size": 200}))
    with pytest.raises(ValueError, match=r"tokenizer: it compresses to \d+ ids, .*=200; use the tokenizer\.json"):
        Engine.from_pretrained(tmp_path)


def test_a_snapshot_of_another_model_is_refused(parts):
    model, tokenizer, memory = parts
    wider = [dataclasses.replace(spec, dim=64) for spec in memory.specs.values()]
    tables = {spec: np.zeros((spec.rows, spec.row_bytes), np.uint8) for spec in wider}
    with pytest.raises(FingerprintMismatch, match=r"table 'engram\.0': .* differ in dim\. Use the snapshot"):
        Engine(model, tokenizer, LocalMemory(tables))
    first = next(iter(memory.specs.values()))
    only_one = LocalMemory({first: np.zeros((first.rows, first.row_bytes), np.uint8)})
    with pytest.raises(UnknownTable, match=r"no table 'engram\.2' in this memory: it has engram\.0"):
        Engine(model, tokenizer, only_one)


def test_a_missing_tokenizer_or_memory_is_named_with_its_remedy(parts, tiny_dir, tmp_path):
    model, tokenizer, memory = parts
    with pytest.raises(ValueError, match=r"tokenizer: a model with Engram layers .* add its tokenizer\.json"):
        Engine(model, None, memory)
    with pytest.raises(ValueError, match=r"memory: a model with Engram layers needs one; give a shard's address"):
        Engine(model, tokenizer, None)
    shutil.copytree(tiny_dir, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"add its tokenizer\.json"):
        Engine.from_pretrained(tmp_path)
    shutil.rmtree(tmp_path / "memory")
    with pytest.raises(SnapshotError, match=r"no snapshot at .*memory: there is no such directory"):
        Engine.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["max_batch", "max_context", "prefill_tokens", "lookup_timeout_s"])
@pytest.mark.parametrize("value", [0, -1])
def test_limits_must_be_above_zero(name, value):
    with pytest.raises(ValueError, match=f"{name}: {value} is not above zero"):
        EngineConfig(**{name: value})

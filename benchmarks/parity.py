"""Does this engine compute what transformers computes, on the device at hand, in bf16 and in fp32?

A small random checkpoint of the DeepSeek-V3 architecture, latents of 512 values as in the real ones, in both
implementations. In fp32 logits must agree to 1e-3 of their spread, and greedy tokens of a batch must be equal. In bf16
the mean error against transformers' fp32 logits may be at most 1.5 times that of transformers' own bf16. The shipped
model must generate the same text on the device as on the CPU: its Engram layers have no other implementation.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from benchmarks.harness.generated import generated_tokens
from benchmarks.harness.report import (
    PACKAGES,
    Report,
    argument_parser,
    describe_device,
    format_table,
    installed_versions,
)
from reasoning.engine import Engine
from reasoning.engine.config import EngineConfig
from reasoning.model.batch import Batch
from reasoning.model.devices import DEVICES, choose_device
from reasoning.request import Request, SamplingParams

CONFIG: dict[str, Any] = {
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 512,
    "moe_intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "n_routed_experts": 16,
    "num_experts_per_tok": 4,
    "n_group": 4,
    "topk_group": 2,
    "kv_lora_rank": 512,
    "q_lora_rank": 128,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 64,
    "v_head_dim": 64,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 1024,
    "initializer_range": 0.05,
}
SHIPPED = Path(__file__).parents[1] / "models" / "tiny-code"
PROMPTS = ("def quicksort(", "class Node:\n    def __init__", "import os\n\n", "for i in range(")
TOLERANCE = 1e-3
"""Largest difference of logits in fp32, as a share of their spread."""
BF16_ERROR = 1.5
"""Largest error in bf16, in multiples of transformers' own."""


def main() -> None:
    """Run the comparison as the command line says; exit code 1 if something differs."""
    parser = argument_parser(__doc__)
    parser.add_argument("--device", choices=DEVICES, default="auto", help="where models run (default %(default)s)")
    options = parser.parse_args()
    device = choose_device(options.device)
    count, new_tokens = (2, 8) if options.quick else (8, 64)
    report = Report("parity", options.quick, versions=installed_versions((*PACKAGES, "triton", "transformers")))
    report.machine |= describe_device(device)
    checks = {**compare_with_transformers(device, count, new_tokens), **compare_with_cpu(device, new_tokens)}
    report.results = {name: {"found": found, "passed": passed} for name, (found, passed) in checks.items()}
    print(format_table(("", "", ""), [(name, f, "passed" if ok else "FAILED") for name, (f, ok) in checks.items()]))
    report.publish(options.json)
    sys.exit(0 if all(passed for _, passed in checks.values()) else 1)


Checks = dict[str, tuple[str, bool]]
"""Comparison -> its result, and whether that is good enough."""


@torch.inference_mode()
def compare_with_transformers(device: torch.device, count: int, new_tokens: int) -> Checks:
    """Logits and greedy tokens for some prompts of unequal length."""
    torch.manual_seed(0)
    prompts = [torch.randint(2, CONFIG["vocab_size"], (30 + 17 * i,)).tolist() for i in range(count)]
    with tempfile.TemporaryDirectory() as directory:
        reference = DeepseekV3ForCausalLM(DeepseekV3Config(**CONFIG)).eval()
        reference.save_pretrained(directory)
        reference = reference.to(device)
        exact = their_logits(reference, prompts[-1])
        expected = [their_tokens(reference, prompt, new_tokens) for prompt in prompts]
        theirs = (their_logits(reference.to(torch.bfloat16), prompts[-1]) - exact).abs().mean().item()
        with engine(directory, device, "bf16") as ours:
            error = (our_logits(ours, prompts[-1]) - exact).abs().mean().item()
        with engine(directory, device, "fp32") as ours:
            spread = float((our_logits(ours, prompts[-1]) - exact).abs().max() / exact.std())
            tokens = our_tokens(ours, [Request(str(i), None, tuple(p)) for i, p in enumerate(prompts)], new_tokens)
    return {
        "fp32 logits, largest difference / spread": (f"{spread:.1e}", spread < TOLERANCE),
        f"fp32 greedy tokens, {count} prompts together": _equal(tokens, expected),
        "bf16 logits, mean error / transformers'": (f"{error / theirs:.2f}", error < BF16_ERROR * theirs),
    }


def compare_with_cpu(device: torch.device, new_tokens: int) -> Checks:
    """Greedy tokens of the shipped model, its memory looked up, in fp32."""
    requests = [Request(str(i), prompt) for i, prompt in enumerate(PROMPTS)]
    found = []
    for where in (device, torch.device("cpu")):
        with engine(SHIPPED, where, "fp32") as opened:
            found.append(our_tokens(opened, requests, new_tokens))
    return {"shipped model, greedy tokens as on the CPU": _equal(*found)}


@contextlib.contextmanager
def engine(directory: str | Path, device: torch.device, dtype: str) -> Iterator[Engine]:
    """An engine of a checkpoint, without drafts, so that it decodes token by token."""
    config = EngineConfig(max_batch=8, max_context=512, drafts="none", device=device.type, dtype=dtype)
    with contextlib.closing(Engine.from_pretrained(directory, config=config)) as made:
        yield made


def our_tokens(engine: Engine, requests: list[Request], new_tokens: int) -> list[list[int]]:
    """Greedy tokens, all requests together."""
    sampling = SamplingParams(max_new_tokens=new_tokens, ignore_eos=True)
    asked = [Request(r.id, r.prompt, r.prompt_token_ids, sampling) for r in requests]
    return generated_tokens(engine, asked)


def our_logits(engine: Engine, prompt: list[int]) -> Tensor:
    """Logits of every position, in fp32."""
    model, cache = engine.model, engine.runner.cache
    ids = torch.tensor(prompt, device=cache.device)
    pages = tuple(range(cache.pages - 1))
    return model.logits(model(Batch(ids, (len(prompt),), (0,), (pages,)), None, cache)).float()


def their_logits(model: Any, prompt: list[int]) -> Tensor:
    """Logits of every position by transformers, in fp32."""
    return model(torch.tensor([prompt], device=model.device)).logits[0].float()


def their_tokens(model: Any, prompt: list[int], new_tokens: int) -> list[int]:
    """Greedy tokens by transformers."""
    ids = torch.tensor([prompt], device=model.device)
    sizes = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0, eos_token_id=None, **sizes
    )
    return out[0, len(prompt) :].tolist()


def _equal(found: list[list[int]], expected: list[list[int]]) -> tuple[str, bool]:
    same = sum(a == b for a, b in zip(found, expected, strict=True))
    return f"{same} of {len(expected)} equal", same == len(expected)


if __name__ == "__main__":
    main()

"""What the throughput benchmark makes of its rivals' times."""

from __future__ import annotations

import pytest

from benchmarks.harness.rounds import Timing
from benchmarks.throughput import check, rate, ratios


def test_rivals_are_compared_in_their_dtype_and_in_their_faster_one():
    timings = {
        "engram-ray fp32": Timing.of([[2.0], [4.0]]),
        "engram-ray bf16": Timing.of([[1.0], [2.0]]),
        "transformers fp32": Timing.of([[4.0], [8.0]]),
        "transformers bf16": Timing.of([[5.0], [9.0]]),
        "vLLM bf16": Timing.of([[1.5], [1.0]]),
    }
    found = {name: (ratio.median, ratio.least, ratio.most) for name, ratio in ratios(timings).items()}
    assert found == {
        "engram-ray fp32 / transformers fp32, output tokens a second": (2.0, 2.0, 2.0),
        "engram-ray bf16 / transformers bf16, output tokens a second": (4.75, 4.5, 5.0),
        "engram-ray bf16 / vLLM bf16, output tokens a second": (1.0, 0.5, 1.5),
        "engram-ray / transformers, each in its faster dtype": (4.0, 4.0, 4.0),
        "engram-ray / vLLM, each in its faster dtype": (1.0, 0.5, 1.5),
    }


def test_a_rate_is_of_tokens_by_the_time_of_each_round():
    spread = rate(Timing.of([[2.0], [4.0], [1.0]]), tokens=8)
    assert (spread.median, spread.least, spread.most) == (4.0, 2.0, 8.0)


def test_an_engine_that_differs_from_transformers_in_fp32_is_not_timed():
    rivals = {
        "transformers fp32": lambda *_: [[1], [2]],
        "engram-ray fp32": lambda *_: [[1], [2]],
        "vLLM fp32": lambda *_: [[1], [3]],
    }
    assert check(rivals, [[5], [6]]) == {"engram-ray fp32": 1.0, "vLLM fp32": 0.5}
    with pytest.raises(RuntimeError, match="nothing is timed"):
        check({**rivals, "engram-ray fp32": rivals["vLLM fp32"]}, [[5], [6]])

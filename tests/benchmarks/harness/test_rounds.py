from __future__ import annotations

import functools
import gc
import subprocess
import sys
import time

import pytest

from benchmarks.harness.rounds import Spread, Timing, time_interleaved


def test_candidates_take_turns_and_each_leads_once() -> None:
    calls: list[str] = []
    timings = time_interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3)
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"
    assert {name: timing.runs for name, timing in timings.items()} == {"a": 3, "b": 3}


def test_turns_of_several_runs_are_one_round_each() -> None:
    timings = time_interleaved({"a": lambda: None}, rounds=3, in_a_row=4)
    assert (timings["a"].runs, len(timings["a"].rounds)) == (12, 3)


def test_collector_is_switched_back_on_after_a_failure() -> None:
    def fail() -> None:
        if not gc.isenabled():
            raise RuntimeError("while timed")

    with pytest.raises(RuntimeError, match="while timed"):
        time_interleaved({"a": fail}, rounds=1)
    assert gc.isenabled()


def test_times_are_summarised_over_all_runs_and_over_rounds() -> None:
    rounds = [[float(i) for i in range(start, 101, 4)] for start in range(4)]
    timing = Timing.of(rounds, client_cpu=101.0, server_cpu=101.0)
    spread = {"median": 50.0, "least": 49.0, "most": 51.0, "rounds": 4}
    assert timing.as_dict() == {
        "p50_s": 50.0,
        "p99_s": 99.0,
        "cpu_s": 2.0,
        "server_cpu_s": 1.0,
        "runs": 101,
        "rounds_s": spread,
    }


def test_ratios_are_of_times_in_the_same_round() -> None:
    """A machine that is twice as slow in one round changes no ratio."""
    ours, theirs = Timing.of([[1.0], [2.0], [1.0]]), Timing.of([[3.0], [6.0], [4.0]])
    assert theirs.over(ours) == Spread(median=3.0, least=3.0, most=4.0, rounds=3)
    with pytest.raises(ValueError, match="shorter"):
        theirs.over(Timing.of([[1.0]]))


def test_a_figure_is_shown_with_its_range_unless_it_has_none() -> None:
    assert Spread.of([1.2, 1.4, 1.0]).show("{:.1f}x") == "1.2x (1.0x to 1.4x)"
    assert Spread.of([1.2]).show("{:.1f}x") == "1.2x"
    assert Timing.of([[0.001], [0.003], [0.002]]).milliseconds(1) == ("2.0 ms", "3.0 ms", "1.0 to 3.0 ms")


def test_figures_of_different_times_have_the_widest_range_as_ratio() -> None:
    ratio = Spread(2.0, 1.0, 4.0, 3).against(Spread(1.0, 0.5, 2.0, 5))
    assert ratio == Spread(median=2.0, least=0.5, most=8.0, rounds=3)


def test_processor_time_counts_this_process_and_the_servers_of_a_candidate() -> None:
    """A server that has never stopped working, a candidate that works, and one that only sleeps."""
    busy = "print(flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", busy], stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            server.stdout.readline()
            sleep = functools.partial(time.sleep, 0.05)
            candidates = {"served": sleep, "works": lambda: sum(range(1_000_000)), "sleeps": sleep}
            timings = time_interleaved(candidates, rounds=3, servers={"served": [server.pid]})
        finally:
            server.kill()
    assert timings["served"].cpu > timings["sleeps"].cpu
    assert timings["works"].cpu > timings["sleeps"].cpu
    assert timings["served"].server_cpu > timings["works"].server_cpu == 0

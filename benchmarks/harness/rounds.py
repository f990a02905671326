"""Fair comparison: every candidate runs once a round, in turn, and what is compared is the ratio within a round.

timings = time_interleaved({"ours": ours, "theirs": theirs}, rounds=20)
timings["theirs"].over(timings["ours"]).show("{:.2f}x")  # "1.33x (0.98x to 1.41x)", median and range of the rounds
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from statistics import median
from typing import TypeVar

import numpy as np

_Name = TypeVar("_Name", bound=Hashable)
_Measured = TypeVar("_Measured")


@dataclass(frozen=True)
class Spread:
    """Median and range of a figure over the rounds of one run."""

    median: float
    """The figure to quote."""
    least: float
    """Smallest value of a round."""
    most: float
    """Largest value of a round."""
    rounds: int
    """Number of rounds; 1 for a figure measured once, such as one that is the same in every run."""

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise one value for each round."""
        return cls(median(values), min(values), max(values), len(values))

    @classmethod
    def of_ratios(cls, over: Sequence[float], under: Sequence[float]) -> Spread:
        """Summarise `over` / `under`, two series that were measured in the same rounds."""
        return cls.of([one / other for one, other in zip(over, under, strict=True)])

    def against(self, other: Spread) -> Spread:
        """Ratio to a figure that was measured before or after this one: the range is the widest that both allow."""
        rounds = min(self.rounds, other.rounds)
        return Spread(self.median / other.median, self.least / other.most, self.most / other.least, rounds)

    def show(self, template: str) -> str:
        """The median and in brackets the range, each formatted by `template`; of one round only its value."""
        if self.rounds == 1:
            return template.format(self.median)
        least, most = template.format(self.least), template.format(self.most)
        return f"{template.format(self.median)} ({least} to {most})"


@dataclass(frozen=True)
class Timing:
    """Times of one candidate, in seconds."""

    p50: float
    """Median of all runs."""
    p99: float
    """99th percentile of all runs."""
    runs: int
    """Number of runs, over all rounds."""
    cpu: float
    """Processor seconds of an average run, including those of the candidate's servers."""
    server_cpu: float
    """Those of the servers alone."""
    rounds: tuple[float, ...]
    """Median time of the runs in each round."""

    @classmethod
    def of(cls, rounds: Sequence[Sequence[float]], client_cpu: float = 0.0, server_cpu: float = 0.0) -> Timing:
        """Summarise the seconds measured in each round, and the processor seconds of all runs together."""
        seconds = [taken for turn in rounds for taken in turn]
        p50, p99 = np.percentile(seconds, (50, 99)).tolist()
        runs = len(seconds)
        return cls(p50, p99, runs, (client_cpu + server_cpu) / runs, server_cpu / runs, tuple(map(median, rounds)))

    @property
    def spread(self) -> Spread:
        """Median and range of the rounds."""
        return Spread.of(self.rounds)

    def over(self, other: Timing) -> Spread:
        """How many times as long this candidate took as another one of the same rounds."""
        return Spread.of_ratios(self.rounds, other.rounds)

    def milliseconds(self, digits: int) -> tuple[str, str, str]:
        """p50, p99, and the range of the rounds' medians, for a table."""
        scaled = [1e3 * seconds for seconds in (self.p50, self.p99, min(self.rounds), max(self.rounds))]
        p50, p99, least, most = (f"{number:.{digits}f}" for number in scaled)
        return f"{p50} ms", f"{p99} ms", f"{least} to {most} ms"

    def as_dict(self) -> dict[str, object]:
        """For a report's results."""
        cpu = {"cpu_s": self.cpu, "server_cpu_s": self.server_cpu}
        return {"p50_s": self.p50, "p99_s": self.p99, **cpu, "runs": self.runs, "rounds_s": asdict(self.spread)}


def take_turns(candidates: Mapping[_Name, Callable[[], _Measured]], rounds: int) -> dict[_Name, list[_Measured]]:
    """Call each candidate once a round, another one first each round; returns what they returned.

    A machine that slows down for a while then slows all of them down, and no one always follows the same other.
    """
    names = list(candidates)
    measured: dict[_Name, list[_Measured]] = {name: [] for name in names}
    for turn in range(rounds):
        for i in range(len(names)):
            name = names[(turn + i) % len(names)]
            measured[name].append(candidates[name]())
    return measured


def time_interleaved(
    candidates: Mapping[_Name, Callable[[], object]],
    rounds: int,
    warmups: int = 1,
    servers: Mapping[_Name, Sequence[int]] | None = None,
    in_a_row: int = 1,
) -> dict[_Name, Timing]:
    """Time each candidate in interleaved rounds, Python's garbage collector switched off.

    Args:
        candidates: what to time, by name.
        rounds: how often each takes its turn.
        warmups: untimed runs of each before.
        servers: by candidate, the processes that work for it and for no other; their processor time counts as its own.
        in_a_row: runs in one turn. What a real client does all the time would otherwise find cold caches and sleeping
            servers after the turns of the others.
    """
    for name in list(candidates) * warmups:
        candidates[name]()
    before = _server_seconds(servers or {})
    turns = {name: _turn(candidate, in_a_row) for name, candidate in candidates.items()}
    with _no_collector():
        measured = take_turns(turns, rounds)
    served = {name: after - before[name] for name, after in _server_seconds(servers or {}).items()}
    return {
        name: Timing.of([seconds for seconds, _ in turns], sum(spent for _, spent in turns), served.get(name, 0.0))
        for name, turns in measured.items()
    }


def process_seconds(pid: int) -> float:
    """Processor seconds that another process has used, to the nanosecond, which /proc/PID/stat rounds to 10 ms.

    The clock's number is what clock_getcpuclockid(3) computes on Linux.
    """
    return time.clock_gettime(~pid << 3 | 2)


def _turn(candidate: Callable[[], object], runs: int) -> Callable[[], tuple[list[float], float]]:
    """A function that measures one turn: the seconds of each run, and the processor seconds of all."""

    def measure() -> tuple[list[float], float]:
        seconds, spent = [], time.process_time()
        for _ in range(runs):
            start = time.perf_counter()
            candidate()
            seconds.append(time.perf_counter() - start)
        return seconds, time.process_time() - spent

    return measure


@contextmanager
def _no_collector() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _server_seconds(servers: Mapping[_Name, Sequence[int]]) -> dict[_Name, float]:
    return {name: sum(map(process_seconds, pids)) for name, pids in servers.items()}

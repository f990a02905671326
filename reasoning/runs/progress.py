"""What a run shows and keeps of its steps: a progress bar, training.jsonl, TensorBoard, and a plot of the loss."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm

from reasoning.training.trainer import StepReport

LOG_FILE, PLOT_FILE, TENSORBOARD = "training.jsonl", "loss.svg", "tensorboard"
_LOOK_S = 0.5
_SMOOTHED = 50  # steps in the mean that the plot shows beside the steps


class Records:
    """The records that a run keeps, in its folder; those of an interrupted run are gone on with. A context manager."""

    def __init__(self, folder: Path, step: int) -> None:
        """Open the records.

        Args:
            folder: folder of the run.
            step: steps taken already; what the records hold of later ones was undone, and is dropped.
        """
        from tensorboardX import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        kept = [line for line in read_log(folder) if line.get("step", 0) <= step and "memory" not in line]
        unfinished = folder / f".{LOG_FILE}"
        unfinished.write_text("".join(json.dumps(line) + "\n" for line in kept))
        unfinished.rename(folder / LOG_FILE)
        self._log = (folder / LOG_FILE).open("a")
        self._board = SummaryWriter(str(folder / TENSORBOARD), purge_step=step + 1)

    def on_step(self, report: StepReport, share: float) -> None:
        """Record a step."""
        self._write({**asdict(report), "share": share})
        for name, value in _scalars(report):
            self._board.add_scalar(name, value, report.step)

    def on_problem(self, message: str) -> None:
        """Record a problem that the run survives."""
        self._write({"problem": message})

    def on_memory(self, address: str) -> None:
        """Record where the tables of this attempt can be read."""
        self._write({"memory": address})

    def _write(self, line: dict[str, Any]) -> None:
        self._log.write(json.dumps(line) + "\n")
        self._log.flush()

    def __enter__(self) -> Records:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._log.close()
        self._board.close()
        plot_loss(read_log(self._folder), self._folder / PLOT_FILE)


class Bar:
    """Shows how far a run is, by reading its log as it grows, in whatever process it is written. A context manager."""

    def __init__(self, folder: Path, quiet: bool = False) -> None:
        """Show the log of a folder; nothing if `quiet`."""
        self._path = folder / LOG_FILE
        self._place: tuple[int, int] = (0, 0)  # inode of the log, and bytes of it that were read
        self._ended = threading.Event()
        self._bar = tqdm(total=100, unit="%", disable=quiet, bar_format="{l_bar}{bar}| {elapsed}<{remaining}{postfix}")
        self._thread = threading.Thread(target=self._follow, name="progress", daemon=True)

    def __enter__(self) -> Bar:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._bar.close()

    def _follow(self) -> None:
        while not self._ended.wait(_LOOK_S):
            self._read()
        self._read()

    def _read(self) -> None:
        try:
            with self._path.open("rb") as file:
                inode = os.fstat(file.fileno()).st_ino
                file.seek(self._place[1] if inode == self._place[0] else 0)
                lines = file.read().split(b"\n")
                self._place = inode, file.tell() - len(lines[-1])
        except OSError:
            return
        for line in lines[:-1]:
            self._show(json.loads(line))

    def _show(self, line: dict[str, Any]) -> None:
        if "problem" in line:
            self._bar.clear()
            print(f"engram train: {line['problem']}", file=sys.stderr, flush=True)
            return
        if "memory" in line:
            self._bar.clear()
            print(f"tables can be read at {line['memory']} while they learn", file=sys.stderr, flush=True)
            return
        self._bar.update(100 * line["share"] - self._bar.n)
        self._bar.set_postfix(
            step=line["step"],
            loss=f"{line['loss']:.3f}",
            tokens_s=f"{line['tokens'] / line['seconds']:,.0f}",
            rows_wait=f"{line['rows_wait_s'] / line['seconds']:.0%}",
            experts=f"{line['expert_load']:.2f}",
            gates="/".join(f"{gate:.2f}" for gate in line["gates"].values()),
        )


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Return the steps that a run has logged; a line that was cut off at the end is left out."""
    path = folder / LOG_FILE
    lines = path.read_text().splitlines() if path.is_file() else []
    steps = []
    for line in lines:
        try:
            steps.append(json.loads(line))
        except ValueError:
            break
    return steps


def plot_loss(steps: Iterable[dict[str, Any]], path: Path) -> None:
    """Draw the loss of each step, and the mean over some steps, as an SVG file; nothing before the first step."""
    from matplotlib.figure import Figure

    numbers, losses = [], []
    for step in (line for line in steps if "step" in line):
        numbers.append(step["step"])
        losses.append(step["loss"])
    if not losses:
        return
    width = min(_SMOOTHED, len(losses))
    means = [sum(losses[max(0, end - width) : end]) / min(width, end) for end in range(1, len(losses) + 1)]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="cross-entropy, nats a token", title="Training loss")
    axes.plot(numbers, losses, linewidth=0.6, alpha=0.4, label="step")
    axes.plot(numbers, means, linewidth=1.6, label=f"mean of {width} steps")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)


def _scalars(report: StepReport) -> Iterable[tuple[str, float]]:
    yield "loss", report.loss
    yield "learning_rate", report.rate
    yield "gradient_norm", report.gradient_norm
    yield "tokens_per_second", report.tokens / report.seconds
    yield "wait/rows", report.rows_wait_s / report.seconds
    yield "wait/pushes", report.push_wait_s / report.seconds
    yield "experts/busiest", report.expert_load
    for layer, gate in report.gates.items():
        yield f"gates/{layer}", gate

"""What a run shows and keeps of its steps: a progress bar, training.jsonl, TensorBoard, and a plot of the loss."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm

from reasoning.training.trainer import StepReport

LOG_FILE, PLOT_FILE, TENSORBOARD = "training.jsonl", "loss.svg", "tensorboard"
_SMOOTHED = 50  # steps in the mean that the plot shows beside the steps


class Progress:
    """The records of a run; the folder's log of an interrupted run is gone on with. A context manager."""

    def __init__(self, folder: Path, step: int, quiet: bool = False) -> None:
        """Open the records.

        Args:
            folder: folder of the run.
            step: steps taken already; what the log holds of later ones was undone, and is dropped.
            quiet: show no progress bar.
        """
        from tensorboardX import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / LOG_FILE
        self._plot = folder / PLOT_FILE
        kept = [line for line in read_log(folder) if line["step"] <= step]
        self._path.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self._log = self._path.open("a")
        self._board = SummaryWriter(str(folder / TENSORBOARD), purge_step=step + 1)
        self._bar = tqdm(total=100, unit="%", disable=quiet, bar_format="{l_bar}{bar}| {elapsed}<{remaining}{postfix}")

    def on_step(self, report: StepReport, share: float) -> None:
        """Record a step."""
        self._log.write(json.dumps({**asdict(report), "share": share}) + "\n")
        self._log.flush()
        for name, value in _scalars(report):
            self._board.add_scalar(name, value, report.step)
        self._bar.update(100 * share - self._bar.n)
        self._bar.set_postfix(
            step=report.step,
            loss=f"{report.loss:.3f}",
            tokens_s=f"{report.tokens / report.seconds:,.0f}",
            rows_wait=f"{report.rows_wait_s / report.seconds:.0%}",
            experts=f"{report.expert_load:.2f}",
            gates="/".join(f"{gate:.2f}" for gate in report.gates.values()),
        )

    def on_problem(self, message: str) -> None:
        """Show a problem that the run survives."""
        self._bar.clear()
        print(f"engram train: {message}", file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        self._log.close()
        self._board.close()
        plot_loss(read_log(self._path.parent), self._plot)


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
    for step in steps:
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

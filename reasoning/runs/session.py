"""One worker's part in a run: from the last checkpoint to the end, step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from memory_service import SnapshotError
from memory_service.snapshots.snapshot import Snapshot
from memory_service.training.memory import LearningMemory
from reasoning.corpora.tokens import Sequences
from reasoning.runs.checkpoints import Checkpoint, CheckpointError, Checkpoints, Position
from reasoning.runs.parts import Parts
from reasoning.training.parallel import Workers
from reasoning.training.state import restore, state_of
from reasoning.training.trainer import StepReport, Trainer

Reader = Callable[[int], Sequences]
"""Step, from 1 -> this worker's sequences."""


@dataclass(frozen=True)
class Events:
    """What a run calls on the first worker."""

    on_step: Callable[[StepReport, float], None]
    """After each step, with the fraction of the run that is done."""
    on_problem: Callable[[str], None]
    """When something went wrong that the run survives, such as a checkpoint that could not be written."""


class Session:
    """A worker of a run. All workers of a run do the same, in step."""

    def __init__(
        self,
        parts: Parts,
        memory: LearningMemory,
        start: Checkpoint | None,
        snapshot: Callable[[], Snapshot] | None,
        events: Events | None = None,
        read: Reader | None = None,
        device: torch.device | None = None,
    ) -> None:
        """Make or restore model and optimizer.

        Args:
            parts: the run's parts.
            memory: the tables, as they were at the checkpoint.
            start: checkpoint to go on from; None to begin.
            snapshot: writes the tables to the checkpoints' snapshot, on the first worker; None for frozen tables.
            events: what to call; None on all workers but the first.
            read: where sequences come from; None for the corpus of `parts`.
            device: where to compute; None for the CPU.

        Raises:
            ValueError: the checkpoint belongs to another run, or the batch cannot be divided among the workers.
        """
        self.workers = Workers()
        config = parts.run.training
        config.sequences_of_rank(self.workers.count)
        position = start.position if start else Position()
        parts.check_position(position)
        model = parts.new_model(device or torch.device("cpu"))
        self.trainer = Trainer(model, parts.hasher, memory, config, self.workers, position.step, position.seconds)
        if start is not None:
            restore(self.trainer, start.read())
        self._parts, self._snapshot, self._events = parts, snapshot, events
        self._checkpoints = Checkpoints(parts.run.output, parts.run.checkpoints.keep)
        self._read = read or (lambda step: parts.sequences(step, self.workers.rank, self.workers.count))
        self._saved = position

    @property
    def position(self) -> Position:
        """How far the run is."""
        return self._parts.position(self.trainer.step_number, self.trainer.seconds)

    def run(self, after_checkpoint: Callable[[Position], None] = lambda _: None) -> Position:
        """Train to the end, with checkpoints on the way and one at the end.

        Args:
            after_checkpoint: called on every worker after each checkpoint.

        Raises:
            TrainingError: a step cannot be taken.
            MemoryServiceError: the memory cannot be reached, or refuses gradients.
            CheckpointError: the last checkpoint cannot be written.
        """
        with _fast_products():
            for _ in self._steps():
                if self._is_due():
                    self.save(last=False)
                    after_checkpoint(self.position)
            self.save(last=True)
            after_checkpoint(self.position)
        return self.position

    def save(self, last: bool) -> None:
        """Write a checkpoint. All workers call this; the first one writes.

        Raises:
            CheckpointError: it cannot be written and is the last; otherwise the run goes on and is told of it.
        """
        self.trainer.finish()
        self._saved = self.position
        shared = self._parts.run.training.parallel == "fsdp2"
        if self.workers.rank == 0 or shared:
            state = state_of(self.trainer)
        if self.workers.rank != 0:
            return
        try:
            memory = None if self._snapshot is None else _written(self._snapshot)
            self._checkpoints.save(state, self.position, memory)
        except CheckpointError as error:
            if last or self._events is None:
                raise
            self._events.on_problem(f"{error}. The run goes on without this checkpoint")

    def _steps(self) -> Iterator[StepReport]:
        config, trainer = self._parts.run.training, self.trainer
        share = config.share(trainer.step_number, trainer.seconds)
        batch = None if share >= 1 else self._read(trainer.step_number + 1)
        while batch is not None:
            following = self._following(trainer.step_number + 2)
            report = trainer.step(batch, config.rate(share), following)
            share = config.share(trainer.step_number, trainer.seconds)
            if self._events is not None:
                self._events.on_step(report, share)
            yield report
            batch = None if share >= 1 else following or self._read(trainer.step_number + 1)

    def _following(self, step: int) -> Sequences | None:
        """The sequences of a step that will be taken, as far as that is known."""
        steps = self._parts.run.training.steps
        return None if steps and step > steps else self._read(step)

    def _is_due(self) -> bool:
        config, position = self._parts.run.checkpoints, self.position
        if self._parts.run.training.share(position.step, position.seconds) >= 1:
            return False  # the last one follows
        by_steps = config.steps and position.step - self._saved.step >= config.steps
        return bool(by_steps) or position.seconds - self._saved.seconds >= 60 * config.minutes


def _written(snapshot: Callable[[], Snapshot]) -> Snapshot:
    try:
        return snapshot()
    except SnapshotError as error:
        raise CheckpointError(f"checkpoint: the tables cannot be written: {error}") from error


@contextmanager
def _fast_products() -> Iterator[None]:
    """Multiply in bf16 where the CPU supports it, accumulating in fp32; restores exact products afterwards."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)

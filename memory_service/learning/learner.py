"""A shard that learns: takes the gradients of all ranks, applies them step by step, and keeps served rows current."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from memory_service.errors import DeadlineExceeded, InvalidRequest, WrongStep
from memory_service.learning.optimizers import Clock, OptimizerConfig, row_optimizer
from memory_service.learning.pushes import Push, RowGradients, StepPushes
from memory_service.learning.state import is_state, state_spec
from memory_service.memory import require_table
from memory_service.shard.shard import Shard
from memory_service.shard.table import ShardTable
from memory_service.snapshots.snapshot import Snapshot
from memory_service.tables.rows import pack_rows
from memory_service.tables.spec import OPTIMIZER_SUFFIX


@dataclass(frozen=True)
class LearningRun:
    """One attempt at training, from a step on.

    Raises:
        ValueError: a number is out of range.
    """

    incarnation: int
    """Number of the attempt, higher than those before it: what is left of them is refused from now on."""
    ranks: int
    """Number of workers; a step needs the pushes of all."""
    step: int = 0
    """Steps that the tables have taken."""
    version: int = 0
    """Version of the tables from now on; higher than any that clients saw, as they may keep rows of undone steps."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimizer of the rows."""
    snapshot_uri: str | None = None
    """Snapshot whose rows and optimizer state to go back to, one generation of it; None to go on from what is held."""

    def __post_init__(self) -> None:
        for name, least in (("incarnation", 1), ("ranks", 1), ("step", 0), ("version", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: {getattr(self, name)} must be at least {least}")


class LearningTable:
    """One table that learns: rows as they are served, and the optimizer state of the same rows."""

    def __init__(self, served: ShardTable, state: ShardTable, config: OptimizerConfig) -> None:
        self.served, self.state = served, state
        self.optimizer = row_optimizer(config, served.spec.dim)

    def updated(self, sums: RowGradients, scale: float, clock: Clock) -> _Update:
        """Compute a step without applying it.

        Raises:
            InvalidRequest: a row would hold a value that is not finite, or that its row format cannot represent.
        """
        local = self.state.locate(sums.rows)
        state = self._read(local)
        self.optimizer.catch_up(state, Clock(clock.step - 1, clock.rates[:-1]))
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused below
            self.optimizer.step(state, sums.gradients * np.float32(scale), clock)
        return self._packed(sums.rows, local, state, f"step {clock.step}")

    def caught_up(self, rows: NDArray[np.int64], clock: Clock) -> _Update | None:
        """Compute the steps that rows have missed; None if they are current."""
        rows = np.unique(rows)
        local = self.state.locate(rows)
        state = self._read(local)
        behind = self.optimizer.catch_up(state, clock)
        if not behind.any():
            return None
        return self._packed(rows[behind], local[behind], state[behind], f"step {clock.step}")

    def _read(self, local: NDArray[np.int64]) -> NDArray[np.float32]:
        packed = np.empty((len(local), self.state.spec.row_bytes), np.uint8)
        self.state.gather(local, packed)
        return packed.view(np.float32)

    def _packed(
        self, rows: NDArray[np.int64], local: NDArray[np.int64], state: NDArray[np.float32], when: str
    ) -> _Update:
        spec = self.served.spec
        if not (finite := np.isfinite(state).all(axis=1)).all():
            row = int(rows[np.argmin(finite)])
            raise InvalidRequest(f"table {spec.name!r}, {when}: row {row} would not be finite; lower the learning rate")
        try:
            packed = pack_rows(state[:, : spec.dim], spec.row_format)
        except ValueError as error:
            raise InvalidRequest(f"table {spec.name!r}, {when}: {error}") from error
        return _Update(self, local, self.served.locate(rows), state, packed)


@dataclass(frozen=True)
class _Update:
    """New state and served rows of one table, not yet applied."""

    table: LearningTable
    state_local: NDArray[np.int64]
    served_local: NDArray[np.int64]
    state: NDArray[np.float32]
    packed: NDArray[np.uint8]

    def apply(self, version: int | None = None) -> None:
        self.table.state.update(self.state_local, self.state.view(np.uint8), version)
        self.table.served.update(self.served_local, self.packed, version)


class Learner:
    """The learning of one shard. Safe to use from several threads.

    A step: every rank pushes its gradients for every table, asks for their norm, which waits for all ranks, and commits
    the step with the factor that clipping gives. The first commit applies the step; repeats of anything change nothing.
    """

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._changed = threading.Condition(threading.RLock())  # guards the fields below and the tables
        self._run: LearningRun | None = None
        self._tables: dict[str, LearningTable] = {}
        self._epoch = 0
        self._step = 0
        self._version = 0
        self._rates: Sequence[float] = []
        self._pushes = StepPushes(1, {})
        self._sums: dict[str, RowGradients] | None = None  # of the open step, once all ranks have pushed
        self._norm = 0.0  # squared, of the last step that was summed
        self._scale: float | None = None  # of the last commit

    @property
    def step(self) -> int:
        """Steps that the tables have taken."""
        return self._step

    def begin(self, run: LearningRun) -> int:
        """Begin an attempt, and drop what an earlier one has left unfinished.

        Returns:
            The version of the tables.

        Raises:
            WrongStep: a later attempt has begun already.
            InvalidRequest: a table has no optimizer state, or that of another optimizer.
            SnapshotError, UnknownTable: the snapshot cannot be used.
            ShardUnavailable: the shard holds nothing yet.
        """
        with self._changed:
            if self._run is not None and run.incarnation < self._run.incarnation:
                raise WrongStep(
                    f"{self._shard.name}: attempt {run.incarnation} is over, attempt {self._run.incarnation} has begun"
                )
            if run == self._run and self._step == run.step and self._sums is None:
                return self._version  # the answer to the first call was lost
            self._settle()
            tables = _learning_tables(self._shard, run.optimizer)
            if run.snapshot_uri is not None:
                self._restore(run.snapshot_uri, tables)
            self._start(run, tables)
            return self._version

    def push(self, push: Push) -> None:
        """Take gradients for the step after the last one; those that were taken already change nothing.

        Raises:
            WrongStep: another attempt or another step is under way, or the placement has changed.
            InvalidRequest: the gradients do not fit the table, are not finite, or contradict those of another rank.
            UnknownTable: the table does not learn here.
            RowOutOfRange: a row is not held here.
        """
        with self._changed:
            run = self._require(push.incarnation, push.step)
            if not 0 <= push.rank < run.ranks:
                raise InvalidRequest(f"{push}: there are ranks 0 to {run.ranks - 1}")
            table = require_table(self._tables, push.table)
            if push.step == self._step:
                return  # it was taken, as the step was committed
            _check_shape(push, table.served.spec.dim)
            push.check()
            table.served.locate(push.rows)
            self._pushes.add(push)
            if not self._pushes.missing_ranks:
                self._changed.notify_all()

    def squared_norm(self, incarnation: int, step: int, timeout_s: float) -> float:
        """Wait until the pushes of all ranks are in, and return the sum of squares of their summed gradients.

        Raises:
            DeadlineExceeded: pushes are still missing; names the ranks.
            WrongStep: another attempt or another step is under way.
        """
        with self._changed:
            self._require(incarnation, step)
            self._changed.wait_for(lambda: self._is_over(incarnation) or self._is_in(step), timeout_s)
            self._require(incarnation, step)
            if not self._is_in(step):
                raise DeadlineExceeded(
                    f"step {step}: {self._shard.name} waits for the pushes of ranks {self._pushes.missing_ranks}",
                    shard=self._shard.name,
                )
            if step > self._step:
                self._sum()
            return self._norm

    def commit(self, incarnation: int, step: int, scale: float) -> int:
        """Apply a step; a commit of the step that was applied last changes nothing.

        Args:
            incarnation: number of the attempt.
            step: number of the step.
            scale: factor on the summed gradients, such as what clipping gives over the number of ranks.

        Returns:
            The version that the tables have with the step.

        Raises:
            WrongStep: pushes are missing, or another attempt or another step is under way.
            InvalidRequest: the factor is not finite or differs from that of another rank, or a row would not be finite.
                Nothing is applied.
        """
        with self._changed:
            self._require(incarnation, step)
            if not (math.isfinite(scale) and scale >= 0):
                raise InvalidRequest(f"step {step}: the factor {scale} must be 0 or more, and finite")
            if step == self._step:
                if self._scale not in (None, scale):
                    raise InvalidRequest(f"step {step}: a rank commits with the factor {scale}, after {self._scale}")
                return self._version
            if self._pushes.missing_ranks:
                raise WrongStep(f"step {step}: the pushes of ranks {self._pushes.missing_ranks} are missing")
            self._apply(self._sum(), scale)
            return self._version

    def end(self, incarnation: int) -> None:
        """End an attempt: rows are brought up to date for good, and pushes are refused.

        Raises:
            WrongStep: another attempt is under way.
        """
        with self._changed:
            if self._run is not None:
                self._require(incarnation, self._step)
                self._settle()

    def _start(self, run: LearningRun, tables: dict[str, LearningTable]) -> None:
        self._run, self._tables = run, tables
        self._epoch, self._step, self._version = self._shard.epoch, run.step, run.version
        self._rates, self._scale = [], None
        self._open_step()
        for table in tables.values():
            table.served.version = table.state.version = run.version
            if table.optimizer.catches_up:
                for each in (table.served, table.state):
                    each.freshen_before_reading(partial(self._freshen, table))
        self._changed.notify_all()

    def _settle(self) -> None:
        """End what is under way, with every row up to date."""
        for table in self._tables.values():
            if table.optimizer.catches_up:
                for block in table.served.blocks.tolist():
                    first = block * table.served.spec.block_rows
                    self._freshen(table, np.arange(first, first + table.served.spec.block_length(block)))
            for each in (table.served, table.state):
                each.freshen_before_reading(None)
        self._run, self._tables = None, {}
        self._changed.notify_all()

    def _restore(self, uri: str, tables: Mapping[str, LearningTable]) -> None:
        snapshot = Snapshot.open(uri)
        for table in tables.values():
            for each in (table.served, table.state):
                _restore_table(each, snapshot)

    def _freshen(self, table: LearningTable, rows: NDArray[np.int64]) -> int:
        with self._changed:
            update = table.caught_up(rows, Clock(self._step, self._rates)) if self._rates else None
            if update is not None:
                update.apply()
            return table.served.version

    def _sum(self) -> dict[str, RowGradients]:
        if self._sums is None:
            self._sums = self._pushes.sums()
            self._norm = math.fsum(sums.squared_norm for sums in self._sums.values())
        return self._sums

    def _apply(self, sums: Mapping[str, RowGradients], scale: float) -> None:
        clock = Clock(self._step + 1, [*self._rates, self._pushes.rate])
        updates = [self._tables[name].updated(each, scale, clock) for name, each in sums.items()]
        self._step, self._version, self._rates, self._scale = clock.step, self._version + 1, clock.rates, scale
        for update in updates:
            update.apply(self._version)
        self._open_step()
        self._changed.notify_all()

    def _open_step(self) -> None:
        assert self._run is not None, "begin() comes first"
        self._pushes = StepPushes(
            self._run.ranks, {name: table.served.spec.dim for name, table in self._tables.items()}
        )
        self._sums = None

    def _is_over(self, incarnation: int) -> bool:
        return self._run is None or self._run.incarnation != incarnation

    def _is_in(self, step: int) -> bool:
        """Whether all pushes of a step are here, or were."""
        return step <= self._step or not self._pushes.missing_ranks

    def _require(self, incarnation: int, step: int) -> LearningRun:
        """The attempt under way, if it is this one, and the step is the next or the last one of it."""
        run, name = self._run, self._shard.name
        if run is None:
            raise WrongStep(f"{name} does not learn: begin an attempt from the last checkpoint")
        if run.incarnation != incarnation:
            raise WrongStep(f"{name}: attempt {incarnation} is over, attempt {run.incarnation} is under way")
        if self._epoch != self._shard.epoch:
            raise WrongStep(f"{name}: the placement has changed while it learned: begin again from the last checkpoint")
        if step not in (self._step, self._step + 1):
            raise WrongStep(f"{name}: step {step} is not next, {self._step} steps are applied")
        return run


@contextmanager
def _naming(table: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise InvalidRequest(f"table {table!r}: {error}") from error


def _learning_tables(shard: Shard, config: OptimizerConfig) -> dict[str, LearningTable]:
    """The tables of a shard with their state, by name."""
    if shard.placement is None:
        raise WrongStep(f"{shard.name} holds no tables yet: give it a placement")
    tables = {}
    for name, served in shard.tables.items():
        if is_state(served.spec):
            continue
        with _naming(name):
            wanted = state_spec(served.spec, config)
        state = shard.tables.get(name + OPTIMIZER_SUFFIX)
        if state is None or state.spec != wanted:
            what = "no optimizer state" if state is None else f"state of {state.spec.dim} values a row"
            raise InvalidRequest(
                f"table {name!r} on {shard.name} has {what}, {config.name} needs {wanted.dim} values: start the shards "
                "from a snapshot that was written for this optimizer"
            )
        if not np.array_equal(served.blocks, state.blocks):
            raise InvalidRequest(f"table {name!r} on {shard.name}: its optimizer state lies on other shards")
        tables[name] = LearningTable(served, state, config)
        if tables[name].optimizer.catches_up and served.shared is not None:
            raise InvalidRequest(
                f"table {name!r} on {shard.name} is mapped by other processes, which would not see rows catch up under "
                f"{config.name}: start the shard without share_memory, or use sparse_adam"
            )
    return tables


def _check_shape(push: Push, dim: int) -> None:
    if len(push.rows) and push.gradients.shape != (len(push.rows), dim):
        raise InvalidRequest(f"{push}: {len(push.rows)} rows of {dim} values, gradients {list(push.gradients.shape)}")


def _restore_table(table: ShardTable, snapshot: Snapshot) -> None:
    entry = snapshot.table(table.spec.name)
    if entry.spec != table.spec:
        fields = ", ".join(table.spec.differing_fields(entry.spec)) or "block_rows"
        raise InvalidRequest(f"table {table.spec.name!r}: the snapshot {snapshot.uri} differs in {fields}")
    for block, rows in snapshot.read_blocks(table.spec.name, table.blocks.tolist()):
        first = block * table.spec.block_rows
        table.update(table.locate(np.arange(first, first + len(rows))), rows)

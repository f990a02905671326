"""Training sequences by Ray Data: read where there are cores and files, and sent to the worker ahead of time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from reasoning.corpora.tokens import Sequences, TokenShards
from reasoning.runs.parts import CORPUS, Parts
from reasoning.runs.session import Reader

_STEPS = 1024  # of one Ray dataset, after which the next begins
_AHEAD = 4  # steps that are read ahead


class _ReadSequences:
    """Reads sequences by number, in whatever process Ray Data runs it."""

    def __init__(self, directory: str) -> None:
        from pathlib import Path

        self._shards = TokenShards.open(Path(directory))

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = self._shards.read(batch["data"])
        return {"tokens": found.tokens, "documents": found.documents}


def ray_reader(parts: Parts, first: int, rank: int, ranks: int) -> Reader:
    """Return a reader of one worker's sequences for steps from `first` on, in their order."""
    steps = _steps(parts, first, rank, ranks)
    read: dict[int, Sequences] = {}

    def sequences(step: int) -> Sequences:
        while step not in read:
            number, found = next(steps)
            read[number] = found
        for number in [number for number in read if number < step]:
            del read[number]
        return read[step]

    return sequences


def _steps(parts: Parts, first: int, rank: int, ranks: int) -> Iterator[tuple[int, Sequences]]:
    while True:
        yield from enumerate(_read(parts, range(first, first + _STEPS), rank, ranks), first)
        first += _STEPS


def _read(parts: Parts, steps: range, rank: int, ranks: int) -> Iterator[Sequences]:
    import ray.data

    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    batch, order = parts.run.training.batch, parts.order()
    wanted = np.concatenate([order.rank_indices(step - 1, batch, rank, ranks) for step in steps])
    size = batch // ranks
    dataset = ray.data.from_numpy(wanted).map_batches(
        _ReadSequences,
        fn_constructor_args=(str(parts.run.output / CORPUS),),
        batch_size=size * _AHEAD,
        compute=ray.data.ActorPoolStrategy(size=1),
        num_cpus=0,  # the workers may have taken all cores, and would wait for ever
    )
    for found in dataset.iter_batches(batch_size=size, batch_format="numpy", prefetch_batches=_AHEAD):
        yield Sequences(found["tokens"], found["documents"])

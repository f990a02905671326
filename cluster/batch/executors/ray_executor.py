"""The executor on Ray: spreads chunks over reasoning workers, and finds the lines that kill them."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cluster.batch.executors.parts import Part, given_up
from cluster.ray_runtime import fetch
from cluster.workers.actors import KEEPS_DYING
from memory_service.errors import MemoryServiceError
from reasoning.engine.config import EngineStats
from reasoning.request import Request, Result

if TYPE_CHECKING:
    from ray.actor import ActorHandle

_PARTS_A_WORKER = 2
"""A part being generated and a part that waits, so that no worker waits for the driver."""
_MOST_DEATHS = 16
"""Deaths of workers in a row, without a finished part in between, after which no single line is to blame."""


@dataclass
class _Worker:
    """A reasoning actor, which runs its parts in order."""

    number: int
    actor: ActorHandle
    incarnation: str
    """Name of the actor's process, as `ready` returned it last."""
    parts: deque[tuple[Any, Part]] = field(default_factory=deque)
    """Parts in flight, each with the Ray reference of its results."""
    starting: Any = None
    """Reference of a `ready` call while the actor restarts; otherwise None."""

    @property
    def awaited(self) -> Any:
        """The reference to wait for; None without work."""
        return self.starting if self.starting is not None else self.parts[0][0] if self.parts else None

    def takes(self, part: Part) -> bool:
        """Whether it has room for a part. A suspect does not share a worker with other parts."""
        if part.suspect or (self.parts and self.parts[-1][1].suspect):
            return not self.parts
        return len(self.parts) < _PARTS_A_WORKER

    def run(self, part: Part) -> None:
        """Send a part. Ray must not retry it: the executor decides what to run after a death."""
        self.parts.append((self.actor.generate.options(max_task_retries=0).remote(part.requests), part))


@dataclass
class _Chunk:
    left: int
    """Number of requests without a result."""
    results: list[Result] = field(default_factory=list)


class RayExecutor:
    """Spreads chunks over reasoning actors, the least loaded first.

    A worker runs its parts in order, so that the first of them is the suspect when the worker dies. A suspect is
    retried alone, on another worker if there is any, then halved until a single line is left. That line is given up
    after `LINE_ATTEMPTS` deaths.
    """

    outlives_workers = True

    def __init__(self, actors: Sequence[ActorHandle]) -> None:
        self.actors, self.workers = actors, len(actors)
        incarnations = fetch([actor.ready.remote() for actor in actors])
        self._workers = [_Worker(*each) for each in zip(range(self.workers), actors, incarnations, strict=True)]
        self._waiting: deque[Part] = deque()
        self._open: dict[int, _Chunk] = {}
        self._done: deque[tuple[int, list[Result]]] = deque()
        self._deaths = 0
        """Deaths of workers since a part was finished."""

    def has_room(self) -> bool:
        """Whether there are fewer than two chunks for each worker."""
        return len(self._open) < _PARTS_A_WORKER * self.workers

    def submit(self, chunk: int, requests: Sequence[Request]) -> None:
        """Send a chunk to the worker with the fewest parts."""
        self._open[chunk] = _Chunk(len(requests))
        self._waiting.append(Part.of(chunk, requests))
        self._send()

    def next_done(self) -> tuple[int, list[Result]]:
        """Wait for a chunk. Returns its number and results.

        Raises:
            ValueError: workers die whatever they run, or the model cannot be loaded again.
            MemoryServiceError: the memory does not answer.
        """
        import ray

        while not self._done:
            awaited = {worker.awaited: worker for worker in self._workers if worker.awaited is not None}
            [ready], _ = ray.wait(list(awaited), num_returns=1)
            worker = awaited[ready]
            if ready is worker.starting:
                self._started(worker)
            else:
                self._take(worker)
            self._send()
        return self._done.popleft()

    def stats(self) -> list[EngineStats]:
        """Return the counters of every engine that runs, since its worker last started."""
        running = [worker.actor.stats.remote() for worker in self._workers if worker.starting is None]
        return list(itertools.chain.from_iterable(fetch(running)))

    def _send(self) -> None:
        """Send waiting parts to the workers with the fewest parts, but not to the worker that died on them last."""
        alive = [worker for worker in self._workers if worker.starting is None]
        kept: deque[Part] = deque()
        while self._waiting:
            part = self._waiting.popleft()
            others = [worker for worker in alive if worker.number != part.died_on] or alive
            free = [worker for worker in others if worker.takes(part)]
            if free:
                min(free, key=lambda worker: len(worker.parts)).run(part)
            else:
                kept.append(part)
        self._waiting = kept

    def _take(self, worker: _Worker) -> None:
        """Take the results of a worker's first part, or handle the death of the worker."""
        import ray

        reference, part = worker.parts[0]
        try:
            results = fetch(reference)
        except MemoryServiceError:
            raise
        except ray.exceptions.RayActorError:
            self._died(worker, "killed, crashed or out of memory")
        except Exception as error:  # the engine stopped in the middle of a step: replace it
            ray.kill(worker.actor, no_restart=False)
            self._died(worker, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
        else:
            worker.parts.popleft()
            self._deaths = 0
            self._finish(part, results)

    def _died(self, worker: _Worker, reason: str) -> None:
        (_, suspect), *innocent = worker.parts
        worker.parts.clear()
        worker.starting = worker.actor.ready.remote()
        self._waiting.extendleft(part for _, part in reversed(innocent))
        self._count_death(suspect, reason)
        instead = suspect.after_death(worker.number)
        self._waiting.extend(instead)  # at the end: other work shows meanwhile whether workers survive at all
        if not instead:
            [request] = suspect.requests
            self._finish(suspect, [given_up(request.id, reason)])

    def _count_death(self, suspect: Part, reason: str) -> None:
        self._deaths += 1
        if self._deaths >= _MOST_DEATHS:
            raise ValueError(
                f"workers: died {self._deaths} times in a row, the last time on {suspect} of the input ({reason}); "
                "look in Ray's logs for the cause, then run the command again to continue"
            )

    def _started(self, worker: _Worker) -> None:
        """Use a restarted worker again, once its process is not the one that was to be killed."""
        import ray

        try:
            incarnation = fetch(worker.starting)
        except ray.exceptions.RayActorError as error:
            raise ValueError(f"workers: {KEEPS_DYING}, then run the command again to continue") from error
        dying = incarnation == worker.incarnation
        worker.starting = worker.actor.ready.remote() if dying else None
        worker.incarnation = incarnation

    def _finish(self, part: Part, results: Iterable[Result]) -> None:
        chunk = self._open[part.chunk]
        chunk.results += results
        chunk.left -= len(part.requests)
        if not chunk.left:
            self._done.append((part.chunk, self._open.pop(part.chunk).results))

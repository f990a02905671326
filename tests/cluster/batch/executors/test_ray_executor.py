"""The executor on a Ray that is played here: actors die of some prompts, and events come in any order."""

from __future__ import annotations

import itertools
import random
from types import SimpleNamespace

import pytest

from cluster.batch.executors import ray_executor
from cluster.batch.executors.parts import Part
from cluster.batch.executors.ray_executor import RayExecutor, _Worker
from memory_service.errors import ShardUnavailable
from reasoning.request import Choice, Completion, Request

ray = pytest.importorskip("ray")


class Reference:
    """What a remote call will return: pending, a value, or an error."""

    def __init__(self, actor, method, requests=()):
        self.actor, self.method, self.requests, self.done, self.lost = actor, method, requests, False, False
        self.value = None


class Actor:
    """Runs its calls in order; dies of "poison", and of whatever the play says."""

    def __init__(self, play):
        self.play, self.calls, self.incarnation, self.alive, self.journal = play, [], next(play.incarnations), True, []
        self.doomed = False  # killed, and not dead yet
        for method in ("ready", "stats", "generate"):
            setattr(self, method, SimpleNamespace(remote=self.caller(method), options=self.options))

    def options(self, max_task_retries):
        assert max_task_retries == 0, "a chunk that ends workers must not be sent again by Ray"
        return self.generate

    def caller(self, method):
        def call(requests=()):
            assert method != "generate" or not self.doomed, "work is sent to a process that is to be replaced"
            self.calls.append(Reference(self, method, requests))
            return self.calls[-1]

        return call

    def step(self):
        """Come back to life, or do what was called first."""
        if not self.alive:
            self.alive, self.incarnation = True, next(self.play.incarnations)
            return
        if self.doomed and self.play.random.random() < 0.5:
            self.die()
            return
        call = self.calls.pop(0)
        prompts = [request.prompt for request in call.requests]
        if call.method == "generate":
            self.journal.append(" ".join(prompts))
        if call.method == "generate" and ("poison" in prompts or self in self.play.sick):
            self.calls.insert(0, call)
            self.die()
        else:
            call.done, call.value = True, self.answer(call, prompts)

    def answer(self, call, prompts):
        if call.method != "generate":
            return self.incarnation if call.method == "ready" else [self.incarnation]
        if "bug" in prompts:
            return RuntimeError("out of\nmemory")
        if "gone" in prompts:
            return ShardUnavailable("the memory is gone")
        return [Completion(r.id, (Choice(0, r.prompt.upper(), (1,), "stop"),), 1) for r in call.requests]

    def die(self):
        """Lose the calls of chunks, and perhaps the last answer that has not arrived; Ray repeats the other calls."""
        self.alive = self.doomed = False
        chunks = [call for call in self.calls if call.method == "generate"]
        arrived = [call for call in self.play.references if call.actor is self and call.method == "generate"]
        chunks += [call for call in arrived if call.done and self.play.random.random() < 0.5]
        for call in chunks:
            call.done, call.value = True, ray.exceptions.RayActorError()
        self.calls = [call for call in self.calls if call.method != "generate"]


class Play:
    """The functions of Ray that an executor calls."""

    def __init__(self, monkeypatch, seed):
        self.random, self.incarnations, self.sick = random.Random(seed), itertools.count(), set()
        self.actors, self.references = [], []
        monkeypatch.setattr(ray, "wait", self.wait)
        monkeypatch.setattr(ray, "kill", self.kill)
        monkeypatch.setattr(ray_executor, "fetch", self.fetch)

    def kill(self, actor, no_restart):
        assert not no_restart
        actor.doomed = True

    def start(self, workers):
        self.actors = [Actor(self) for _ in range(workers)]
        return RayExecutor(self.actors)

    def wait(self, references, num_returns):
        self.references = references
        more = self.random.choice((0, 0, 1, 4))  # steps that happen before the caller looks
        while not (done := [reference for reference in references if reference.done]) or more:
            busy = [actor for actor in self.actors if actor.calls or not actor.alive]
            if busy:
                self.random.choice(busy).step()
            more = more - 1 if done and busy else more if not done else 0
        return [self.random.choice(done)], []

    def fetch(self, references):
        if isinstance(references, list):
            return [self.fetch(reference) for reference in references]
        while not references.done:
            references.actor.step()
        if isinstance(references.value, Exception):
            raise references.value
        return references.value

    def journal(self):
        return [prompts for actor in self.actors for prompts in actor.journal]


@pytest.fixture(params=range(20))
def play(request, monkeypatch):
    return Play(monkeypatch, request.param)


def requests(prompts, first=1):
    return [Request(str(number), prompt) for number, prompt in enumerate(prompts.split(), start=first)]


def answers(results):
    return {result.id: result.text if isinstance(result, Completion) else result.field for result in results}


def run(executor, chunks):
    """Submit chunks as there is room for them, and return all answers."""
    todo, done, first = list(enumerate(chunks)), {}, 1
    while todo or len(done) < len(chunks):
        while todo and executor.has_room():
            number, prompts = todo.pop(0)
            executor.submit(number, requests(prompts, first))
            first += len(prompts.split())
        number, results = executor.next_done()
        assert number not in done
        done[number] = results
    return {result.id: result for results in done.values() for result in results}


def expected(chunks):
    prompts = " ".join(chunks).split()
    return {str(n): "line" if p in ("poison", "bug") else p.upper() for n, p in enumerate(prompts, start=1)}


CHUNKS = ["a b c d", "e poison g h", "i j", "k", "l m n o", "p bug r s", "t u v w"]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_every_line_is_answered_and_those_that_end_workers_are_given_up(play, workers):
    results = run(play.start(workers), CHUNKS)
    assert answers(results.values()) == expected(CHUNKS)
    assert "killed its worker 3 times (killed, crashed or out of memory)" in results["6"].message
    assert "killed its worker 3 times (RuntimeError: out of memory)" in results["17"].message


def test_one_line_to_blame_costs_few_workers(play):
    run(play.start(2), ["a b c poison e f g h", "i j"])
    tried = [prompts for prompts in play.journal() if "poison" in prompts]
    assert sorted(tried, key=len, reverse=True) == [
        *("a b c poison e f g h", "a b c poison e f g h", "a b c poison", "c poison", "poison", "poison", "poison"),
    ]


def test_a_sick_worker_is_not_taken_for_the_fault_of_lines(play):
    executor = play.start(2)
    play.sick = {play.actors[0]}
    assert answers(run(executor, list("abcdefgh")).values()) == expected(["a b c d e f g h"])


def test_a_suspect_shares_its_worker_with_no_other_part(play):
    part, suspect = Part.of(0, requests("a")), Part.of(0, requests("b")).after_death(1)[0]
    for first, second, shared in ((part, part, True), (part, suspect, False), (suspect, part, False)):
        worker = _Worker(0, Actor(play), "")
        assert worker.takes(first)
        worker.run(first)
        assert worker.takes(second) == shared
        worker.run(second)
        assert not worker.takes(part)


def test_workers_that_die_of_everything_end_the_job(play):
    executor = play.start(2)
    play.sick = {*play.actors}
    executor.submit(0, requests("a b c d e f g h", first=17))
    with pytest.raises(ValueError, match=r"workers: died 16 times in a row, the last time on line (17|18|19|2\d) of"):
        executor.next_done()
    assert len(play.journal()) in (16, 17)  # another may be dying already


def test_a_memory_that_stays_away_is_no_fault_of_the_lines(play):
    executor = play.start(1)
    executor.submit(0, requests("a gone"))
    with pytest.raises(ShardUnavailable, match="the memory is gone"):
        executor.next_done()


def test_chunks_go_to_the_worker_with_the_fewest(play):
    executor = play.start(2)
    for chunk in range(4):
        assert executor.has_room()
        executor.submit(chunk, requests("a b"))
    assert not executor.has_room()
    assert [len(actor.calls) for actor in play.actors] == [2, 2]
    assert sorted(executor.next_done()[0] for _ in range(4)) == [0, 1, 2, 3]
    assert len(executor.stats()) == 2

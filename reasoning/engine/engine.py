"""The engine: requests in, completions out. Each `step` schedules a batch, runs it and returns its events."""

from __future__ import annotations

import itertools
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor

from memory_service import Memory
from reasoning.architectures.base import Backbone
from reasoning.drafts.acceptance import accept
from reasoning.drafts.manager import Drafting, Outcome
from reasoning.engine.answers import Answer, Sample
from reasoning.engine.calls import Call, Calls
from reasoning.engine.config import EngineConfig, EngineStats
from reasoning.engine.graphs import DecodeGraphs
from reasoning.engine.loading import load_parts, open_lookup
from reasoning.engine.memory_budget import CacheBudget, Room, cache_budget
from reasoning.engine.runner import FetchError, Likeliest, ModelRunner, Output
from reasoning.engine.trace import Trace
from reasoning.engine.warm_up import warm_up
from reasoning.engram.row_lookup import PendingRows
from reasoning.model.batch import pages_for
from reasoning.request import Completion, Delta, Event, FinishReason, Request, RequestError, RequestFailure, Result
from reasoning.sampling.sampler import SamplerError
from reasoning.scheduling.cohorts import CohortTuner, Step
from reasoning.scheduling.pages import PagePool
from reasoning.scheduling.scheduler import Limits, Scheduler
from reasoning.scheduling.sequence import Piece, Sequence
from reasoning.scheduling.work import Work
from reasoning.text.prompts import PromptReader
from reasoning.text.stops import end_tokens
from reasoning.text.tokenizer import Tokenizer


class QueueFullError(RequestError):
    """More sequences wait than `max_queue` allows. The same request may be taken later."""


class Engine:
    """A model, its tokenizer and its memory, running as many requests at once as fit. For one thread at a time."""

    def __init__(
        self,
        model: Backbone,
        tokenizer: Tokenizer | None = None,
        memory: Memory | None = None,
        config: EngineConfig | None = None,
        trace: Trace | None = None,
    ):
        """Put the parts together.

        Args:
            model: in evaluation mode; it runs on the device where its weights are, whatever `config` says.
            tokenizer: None serves `prompt_token_ids` only; Engram layers need one, to hash.
            memory: holds the tables of the Engram layers; the engine closes it.
            config: limits.
            trace: is told what every step did.

        Raises:
            ValueError: a model with Engram layers lacks its tokenizer or memory, or they do not fit it.
            FingerprintMismatch: the memory holds other tables than the model was trained with.
        """
        self.model, self.tokenizer, self.memory, self.trace = model, tokenizer, memory, trace
        self.config = config = config or EngineConfig()
        self.lookup = open_lookup(model, tokenizer, memory, config.lookup_timeout_s)
        self.budget = self._cache_budget()
        self.vocab_size = self._servable_ids()
        self.prompts = PromptReader(tokenizer, self.vocab_size, self.budget.context)
        self.runner = self._model_runner()
        self.drafting = Drafting(config.drafts, config.draft_policy, model, self.runner.cache, self.vocab_size)
        self.scheduler = self._new_scheduler()
        self.tuner = CohortTuner(config.cohorts if config.overlap else 1)
        self._answers: dict[str, Answer] = {}
        self._calls = Calls(self.cancel)
        self._arrivals = itertools.count()
        self._steps = self._prompt_tokens = self._reused_tokens = self._output_tokens = 0
        self._busy_s = self._waited_s = 0.0
        self._decoded_at: float | None = None

    @classmethod
    def from_pretrained(
        cls,
        model_dir: str | Path,
        memory: Memory | str | None = None,
        config: EngineConfig | None = None,
        trace: Trace | None = None,
    ) -> Engine:
        """Load a model directory.

        Args:
            model_dir: config.json, *.safetensors, and where the model needs them tokenizer.json and memory/.
            memory: a memory, or any shard's address; None loads `model_dir/memory` into this process.
            config: limits, device and dtype.
            trace: is told what every step did.

        Raises:
            ValueError: a file is missing or damaged, or there is no such device; see also `__init__`.
            MemoryServiceError: the memory cannot be reached or loaded.
        """
        config = config or EngineConfig()
        with load_parts(Path(model_dir), memory, config) as (model, tokenizer, opened):
            return cls(model, tokenizer, opened, config, trace)

    def _cache_budget(self) -> CacheBudget:
        room = Room.on(self.model.device, self.model.new_cache(1).bytes_per_token)
        return cache_budget(self.config, self.model.config.max_position_embeddings, room)

    def _servable_ids(self) -> int:
        """Number of token ids that can be served: an id without a compressed id could not be hashed."""
        known = self.model.config.vocab_size
        return known if self.lookup is None else min(known, self.lookup.hasher.token_map.vocab_size)

    def _model_runner(self) -> ModelRunner:
        """The model with its cache, on a GPU with CUDA graphs and kernels tuned on full batches."""
        model, config, context = self.model, self.config, self.budget.context
        cache = model.new_cache(self.budget.pages + 1)  # the last page belongs to no sequence: padding writes to it
        graphs = DecodeGraphs.where_possible(model, cache, config.max_batch, pages_for(context))
        if graphs is not None:
            width = model.config.engram.width if model.config.engram is not None else 0
            warm_up(graphs, cache, width, config.prefill_tokens, config.max_batch, context)
        return ModelRunner(model, cache, self.lookup, self.vocab_size, graphs)

    def _new_scheduler(self) -> Scheduler:
        config = self.config
        limits = Limits(config.max_batch, config.prefill_tokens, config.overlap)
        pool = PagePool(self.budget.pages, config.prefix_cache)
        return Scheduler(limits, pool, self._ask, self.drafting.propose)

    @property
    def idle(self) -> bool:
        """Whether no request is unfinished."""
        return self.scheduler.idle

    def add(self, request: Request) -> None:
        """Queue a request, and look up the rows of its prompt.

        Raises:
            QueueFullError: `max_queue` sequences wait already.
            RequestError: a field of the request cannot be served.
        """
        if request.id in self._answers:
            raise RequestError("id", f"{request.id!r} is being served already; give each request its own")
        if len(self.scheduler.waiting) >= self.config.max_queue:
            raise QueueFullError("queue", f"{len(self.scheduler.waiting)} sequences wait; try again later")
        prompt = self.prompts.read(request)
        with self._calls.working():
            self._queue(request, prompt)

    def _queue(self, request: Request, prompt: list[int]) -> None:
        limit = min(len(prompt) + request.sampling.max_new_tokens, self.prompts.context)
        sequences = [Sequence(request, prompt, limit, next(self._arrivals))]
        for _ in range(1, request.sampling.n):
            sequences.append(Sequence(request, prompt, limit, next(self._arrivals), sequences[0]))
        ends = end_tokens(request.sampling, self.tokenizer, self.model.config.eos_token_id)
        self._answers[request.id] = Answer.begin(request, sequences, self.tokenizer, ends)
        for sequence in sequences:
            self.scheduler.add(sequence)
        if self.config.overlap:
            self.scheduler.send()

    def cancel(self, request_id: str) -> Completion | None:
        """Stop a request and return what it has generated so far; None if the engine does not have the request."""
        answer = self._answers.get(request_id)
        if answer is None:
            return None
        for sequence in answer.unfinished:
            self._end(sequence, answer, "cancelled")
        del self._answers[request_id]
        self._calls.forget(request_id)
        return answer.completion()

    def generate(self, requests: Iterable[Request]) -> Iterator[Result]:
        """Run requests to the end and yield each result as it completes; a request that fails yields RequestFailure.

        Requests are read while the queue has room, so `requests` may be endless. Leaving the iteration early, by
        `close` or by an exception in its consumer or in `requests`, cancels its unfinished requests. Several iterations
        may take turns on an engine: each yields the results of its own requests, and of requests given to `add`.
        """
        with closing(self.events(requests)) as events:
            for event in events:
                if not isinstance(event, Delta):
                    yield event

    def events(self, requests: Iterable[Request]) -> Generator[Event]:
        """Like `generate`, and also yield the deltas of streaming requests."""
        call = Call()
        try:
            yield from self._events(iter(requests), call)
        finally:
            self._calls.leave(call)

    def _events(self, todo: Iterator[Request], call: Call) -> Iterator[Event]:
        more = True
        while more or call.events or call.unfinished or len(self._calls.requests) < len(self._answers):
            while more and len(self.scheduler.waiting) < self.config.max_queue:
                request = next(todo, None)
                if request is None:
                    more = False
                    break
                try:
                    self.add(request)
                except RequestError as error:
                    yield RequestFailure(request.id, error.field, error.message)
                else:
                    self._calls.own(call, request.id)
            if not call.events:
                call.events.extend(self.step())
            while call.events:
                yield call.events.popleft()

    def step(self) -> list[Event]:
        """Run a batch whose rows have landed, and return its events.

        Events of requests that belong to an iteration over `events` or `generate` are yielded there instead.
        """
        with self._calls.working():
            return self._calls.deliver(self._step())

    @torch.inference_mode()
    def _step(self) -> list[Event]:
        begin = time.perf_counter()
        self.scheduler.cohorts = self.tuner.cohorts
        self.scheduler.send()
        asked = time.perf_counter()
        pieces = self.scheduler.take()
        taken = time.perf_counter()
        events: list[Event] = []
        if pieces:
            events = self._run(pieces, begin, taken - asked)
            self._steps += 1
        if self.config.overlap:
            self.scheduler.send()
        self._busy_s += time.perf_counter() - begin
        if self.trace is not None:
            self.trace.step(begin, asked, taken)
        return events

    def _ask(self, pieces: list[Piece]) -> PendingRows | None:
        if self.lookup is None:
            return None
        reach = self.lookup.history_length
        histories = [piece.sequence.history(piece.start, reach) for piece in pieces]
        return self.lookup.request([piece.token_ids for piece in pieces], histories)

    def _run(self, pieces: list[Piece], began: float, waited_s: float) -> list[Event]:
        try:
            output = self.runner.run(pieces)
        except FetchError as failed:
            self._decoded_at = None
            if self.trace is not None:
                self.trace.failed(failed.fetch, str(failed))
            requests = {piece.sequence.request.id: None for piece in failed.fetch.live}
            return [self._fail(name, RequestFailure(name, "memory", str(failed), retryable=True)) for name in requests]
        self._waited_s += waited_s + output.waited_s
        self.scheduler.done(pieces)
        events: list[Event] = []
        outcomes: list[Outcome] = []
        for work, logits, likeliest in zip(output.works, output.logits, output.likeliest, strict=True):
            if not work.sequence.ended:  # as it has where another sample of its request failed in this step
                events += self._advance(work, logits, likeliest, outcomes)
        self.drafting.learn(output.hidden, [outcome for outcome in outcomes if not outcome.work.sequence.ended])
        self._measure(output, began, waited_s)
        if self.trace is not None:
            self.trace.model(pieces, output)
        return events

    def _measure(self, output: Output, began: float, waited_s: float) -> None:
        """Record the times of a decode-only step; the tuner compares consecutive decode-only steps."""
        rows = output.works[0].pieces[0].fetch.rows
        trip_s = rows.round_trip_s if rows is not None else None
        before, self._decoded_at = self._decoded_at, None
        if trip_s is None or not all(work.decodes for work in output.works):
            return
        self._decoded_at = self._busy_s + time.perf_counter() - began
        self.scheduler.pace.record(trip_s, output.hidden_s, output.computed_s)
        if before is not None:
            waited_s += output.waited_s
            self.tuner.record(Step(len(output.works), self._decoded_at - before, waited_s, trip_s))

    def _advance(self, work: Work, logits: Tensor, likeliest: Likeliest, outcomes: list[Outcome]) -> list[Event]:
        """Add the outcome of a step to a sequence and its sample."""
        sequence = work.sequence
        if work.start < sequence.prompt_tokens <= work.end and not sequence.new_tokens:
            self._prompt_tokens += sequence.prompt_tokens
            self._reused_tokens += sequence.reused_tokens
        answer = self._answers[sequence.request.id]
        known, reason = len(sequence.token_ids), None
        try:
            if work.logits:
                reason = self._accept(answer.samples[sequence], work, logits, likeliest)
        except SamplerError as error:
            return [self._fail(sequence.request.id, RequestFailure(sequence.request.id, error.field, error.message))]
        found = len(sequence.token_ids) - known
        sequence.num_cached = len(sequence.token_ids) - 1 if work.logits else work.end
        sequence.name_pages(self.scheduler.pool)
        following = sequence.token_ids[work.start + 1 : sequence.num_cached + 1]
        outcomes.append(Outcome(work, max(0, found - 1), following))
        return self._report(sequence, answer, reason) if work.logits else []

    def _accept(self, sample: Sample, work: Work, logits: Tensor, likeliest: Likeliest) -> FinishReason | None:
        """Accept tokens up to the first that differs from its draft or ends the sample."""
        sequence = work.sequence
        for chosen in accept(sequence.sampler, logits, likeliest, work.drafts):
            sequence.token_ids.append(chosen.token)
            sample.write(chosen)
            self._output_tokens += 1
            if sample.stopped:
                return "stop"
            if len(sequence.token_ids) >= sequence.limit:
                return "length"
        return None

    def _report(self, sequence: Sequence, answer: Answer, reason: FinishReason | None) -> list[Event]:
        if reason is not None:
            self._end(sequence, answer, reason)
        delta = answer.delta(sequence)
        events: list[Event] = [] if delta is None else [delta]
        if answer.finished:
            del self._answers[answer.request.id]
            events.append(answer.completion())
        return events

    def _end(self, sequence: Sequence, answer: Answer, reason: FinishReason) -> None:
        answer.end(sequence, reason)
        self._remove(sequence)

    def _remove(self, sequence: Sequence) -> None:
        self.scheduler.remove(sequence)
        self.drafting.forget(sequence)

    def _fail(self, request_id: str, failure: RequestFailure) -> RequestFailure:
        for sequence in self._answers.pop(request_id).unfinished:
            self._remove(sequence)
        return failure

    def reconnect(self, memory: Memory) -> None:
        """Take rows from another memory with the same tables from now on, and close the one in use.

        Call it while the engine is idle. The cache stays valid: what it keeps follows from tokens and tables alone.

        Raises:
            FingerprintMismatch: the memory holds other tables; the engine keeps the one in use.
        """
        assert self.idle, "rows of the memory in use may be on their way"
        self.lookup = open_lookup(self.model, self.tokenizer, memory, self.config.lookup_timeout_s)
        self.runner.lookup = self.lookup
        self.close()
        self.memory = memory

    def check_integrity(self) -> None:
        """Check the consistency of pages, pieces and requests between steps.

        Raises:
            AssertionError: something is inconsistent.
        """
        self.scheduler.check_integrity()
        assert self._calls.requests <= self._answers.keys(), "a call waits for a request that has ended"
        known = {sequence for answer in self._answers.values() for sequence in answer.unfinished}
        assert known == {*self.scheduler.running, *self.scheduler.waiting}, "a sequence belongs to no request"

    def stats(self) -> EngineStats:
        """Return counters since the start of the engine, and its current state."""
        return EngineStats(
            context=self.budget.context,
            model_context=self.model.config.max_position_embeddings,
            token_bytes=self.prompts.limits.token_bytes,
            cache_tokens=self.budget.tokens,
            cache_bytes=self.budget.tokens * self.runner.cache.bytes_per_token,
            steps=self._steps,
            prompt_tokens=self._prompt_tokens,
            reused_tokens=self._reused_tokens,
            output_tokens=self._output_tokens,
            drafted_tokens=self.drafting.proposed,
            accepted_tokens=self.drafting.accepted,
            busy_s=self._busy_s,
            waited_s=self._waited_s,
            preemptions=self.scheduler.preemptions,
            running=len(self.scheduler.running),
            waiting=len(self.scheduler.waiting),
            free_pages=self.scheduler.pool.available,
            cohorts=self.tuner.cohorts,
            round_trip_s=self.scheduler.pace.round_trip_s,
            hidden_s=self.scheduler.pace.hidden_s,
            memory=self.memory.stats() if self.memory is not None else None,
        )

    def close(self) -> None:
        """Close the memory."""
        if self.memory is not None:
            self.memory.close()

"""The engine: requests in, completions out. One `step` schedules a batch, runs it and hands back what finished."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch

from memory_service import ClientConfig, LocalMemory, Memory, MemoryClient, MemoryServiceError, MemoryStats
from reasoning.checkpoint import load_model
from reasoning.config import ModelConfig
from reasoning.hasher import build_hasher, table_specs
from reasoning.lookup import RowLookup
from reasoning.model.batch import Cache, pages_for
from reasoning.model.transformer import Transformer
from reasoning.request import Completion, Request, RequestError, RequestFailure, Result
from reasoning.scheduler import Scheduler, Sequence, batch_of
from reasoning.tokenizer import TOKENIZER_FILE, Tokenizer

MEMORY_DIR = "memory"


@dataclass(frozen=True)
class EngineConfig:
    """How much one engine takes on at a time."""

    max_batch: int = 16
    """Sequences that run together."""
    max_context: int = 4096
    """Tokens of a prompt and its completion together; the model's own limit applies as well."""
    prefill_tokens: int = 2048
    """Prompt tokens that enter in one step, unless a single prompt is longer."""
    lookup_timeout_s: float = 10.0
    """How long a step waits for memory rows before its requests fail."""
    client: ClientConfig = field(default_factory=ClientConfig)
    """How rows are asked for where the memory is on the network."""

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_context", "prefill_tokens", "lookup_timeout_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: {getattr(self, name)!r} is not above zero")


@dataclass(frozen=True)
class EngineStats:
    """Counters since the engine was made."""

    steps: int
    prompt_tokens: int
    output_tokens: int
    busy_s: float
    """Time spent in steps."""
    waited_s: float
    """Part of it spent waiting for memory rows."""
    memory: MemoryStats | None
    """None for a model without Engram layers."""


class Engine:
    """A model, its tokenizer and its memory, running as many requests at once as fit."""

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer | None = None,
        memory: Memory | None = None,
        config: EngineConfig | None = None,
    ):
        """Put the parts together.

        Args:
            model: in evaluation mode.
            tokenizer: None serves `prompt_token_ids` only; Engram layers need one, to hash.
            memory: holds the tables of the Engram layers; the engine closes it.
            config: limits.

        Raises:
            ValueError: a model with Engram layers lacks its tokenizer or memory, or they do not fit it.
            FingerprintMismatch: the memory holds other tables than the model was trained with.
        """
        self.model, self.tokenizer, self.memory = model, tokenizer, memory
        self.config = config or EngineConfig()
        self.context = min(self.config.max_context, model.config.max_position_embeddings)
        self.lookup = self._row_lookup()
        self.vocab_size = model.config.vocab_size
        if self.lookup is not None:  # an id without a compressed id could not be hashed
            self.vocab_size = min(self.vocab_size, self.lookup.hasher.token_map.vocab_size)
        slot_pages = pages_for(self.context)
        self.scheduler = Scheduler(self.config.max_batch, self.config.prefill_tokens, slot_pages)
        self._cache = Cache.empty(model.config, self.config.max_batch * slot_pages)
        self._steps = self._prompt_tokens = self._output_tokens = 0
        self._busy_s = 0.0

    @classmethod
    def from_pretrained(
        cls, model_dir: str | Path, memory: Memory | str | None = None, config: EngineConfig | None = None
    ) -> Engine:
        """Load a model directory.

        Args:
            model_dir: config.json, *.safetensors, and where the model needs them tokenizer.json and memory/.
            memory: a memory, or any shard's address; None loads `model_dir/memory` into this process.
            config: limits.

        Raises:
            ValueError: a file is missing or damaged; see also `__init__`.
            MemoryServiceError: the memory cannot be reached or loaded.
        """
        directory = Path(model_dir)
        needs_memory = bool(ModelConfig.from_dir(directory).engram_layer_ids)
        model = load_model(directory)
        has_tokenizer = (directory / TOKENIZER_FILE).is_file()
        tokenizer = Tokenizer.from_file(directory) if has_tokenizer else None
        with ExitStack() as opened:
            if needs_memory and (memory is None or isinstance(memory, str)):
                memory = _open_memory(memory, directory / MEMORY_DIR, config or EngineConfig())
                opened.callback(memory.close)
            engine = cls(model, tokenizer, memory if needs_memory else None, config)  # type: ignore[arg-type]
            opened.pop_all()  # from here on it is the engine's to close
        return engine

    def _row_lookup(self) -> RowLookup | None:
        config = self.model.config
        if not config.engram_layer_ids:
            return None
        if self.tokenizer is None:
            raise ValueError("tokenizer: a model with Engram layers hashes its tokens by it; add its tokenizer.json")
        if self.memory is None:
            raise ValueError("memory: a model with Engram layers needs one; give a shard's address or a snapshot")
        hasher = build_hasher(config, self.tokenizer)
        return RowLookup(hasher, table_specs(config, hasher), self.memory, self.config.lookup_timeout_s)

    def add(self, request: Request) -> None:
        """Queue a request; RequestError says which field of it cannot be served."""
        prompt = self._prompt_ids(request)
        if not prompt:
            raise RequestError(_field(request), "is empty; give at least one token")
        if len(prompt) >= self.context:
            message = f"{len(prompt)} tokens leave no room in a context of {self.context}; shorten the prompt"
            raise RequestError(_field(request), message)
        limit = min(len(prompt) + request.sampling.max_new_tokens, self.context)
        self.scheduler.add(Sequence(request, prompt, limit))

    def _prompt_ids(self, request: Request) -> list[int]:
        if (request.prompt is None) == (request.prompt_token_ids is None):
            raise RequestError("prompt", "give exactly one of prompt and prompt_token_ids")
        ids = self._encode(request.prompt) if request.prompt is not None else request.prompt_token_ids
        if not isinstance(ids, list | tuple):
            raise RequestError(_field(request), f"{ids!r} is not a list of token ids")
        for position, token in enumerate(ids):
            if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < self.vocab_size:
                message = f"{token!r} at position {position} is not a token id from 0 to {self.vocab_size - 1}"
                raise RequestError(_field(request), message)
        return list(ids)

    def _encode(self, prompt: str) -> list[int]:
        if self.tokenizer is None:
            raise RequestError("prompt", "this model has no tokenizer.json; give prompt_token_ids instead")
        try:
            return self.tokenizer.encode(prompt)
        except ValueError as error:
            raise RequestError("prompt", str(error).removeprefix("text: ")) from error

    def generate(self, requests: Iterable[Request]) -> Iterator[Result]:
        """Run requests to the end, yielding each as it finishes; a request that fails yields a RequestFailure."""
        for request in requests:
            try:
                self.add(request)
            except RequestError as error:
                yield RequestFailure(request.id, error.field, error.message)
        while not self.scheduler.idle:
            yield from self.step()

    @torch.inference_mode()
    def step(self) -> list[Result]:
        """Schedule a batch, run it, and return the requests that ended with it."""
        begin = time.perf_counter()
        sequences = self.scheduler.schedule()
        try:
            tokens = self._run(sequences)
        except MemoryServiceError as error:
            return self._fail(sequences, error)
        finally:
            self._steps += 1
            self._busy_s += time.perf_counter() - begin
        return self._advance(sequences, tokens)

    def _run(self, sequences: list[Sequence]) -> list[int]:
        """Return the next token of each sequence."""
        rows = None
        if self.lookup is not None:
            histories = [sequence.history(self.lookup.history_length) for sequence in sequences]
            rows = self.lookup.request([sequence.fresh for sequence in sequences], histories)
        batch = batch_of(sequences)
        hidden = self.model(batch, rows, self._cache)
        logits = self.model.logits(hidden[batch.last_tokens])[:, : self.vocab_size]
        return [sequence.sampler.choose(scores) for sequence, scores in zip(sequences, logits, strict=True)]

    def _advance(self, sequences: list[Sequence], tokens: list[int]) -> list[Result]:
        finished: list[Result] = []
        for sequence, token in zip(sequences, tokens, strict=True):
            self._prompt_tokens += sequence.prompt_tokens if sequence.num_cached == 0 else 0
            self._output_tokens += 1
            sequence.num_cached = len(sequence.token_ids)
            sequence.token_ids.append(token)
            reason = self._finish_reason(sequence, token)
            if reason is not None:
                self.scheduler.finish(sequence)
                finished.append(self._completion(sequence, reason))
        return finished

    def _finish_reason(self, sequence: Sequence, token: int) -> str | None:
        if token in self.model.config.eos_token_id and not sequence.request.sampling.ignore_eos:
            return "stop"
        return "length" if len(sequence.token_ids) >= sequence.limit else None

    def _completion(self, sequence: Sequence, reason: str) -> Completion:
        new = sequence.new_tokens
        text = self.tokenizer.decode(new) if self.tokenizer is not None else ""
        return Completion(sequence.request.id, text, tuple(new), sequence.prompt_tokens, reason)

    def _fail(self, sequences: list[Sequence], error: MemoryServiceError) -> list[Result]:
        for sequence in sequences:
            self.scheduler.finish(sequence)
        return [RequestFailure(sequence.request.id, "memory", str(error), retryable=True) for sequence in sequences]

    def stats(self) -> EngineStats:
        """Counters since the engine was made."""
        waited = self.lookup.waited_s if self.lookup is not None else 0.0
        memory = self.memory.stats() if self.memory is not None else None
        return EngineStats(self._steps, self._prompt_tokens, self._output_tokens, self._busy_s, waited, memory)

    def close(self) -> None:
        """Let go of the memory."""
        if self.memory is not None:
            self.memory.close()


def _open_memory(address: str | None, tables: Path, config: EngineConfig) -> Memory:
    if address is None:
        return LocalMemory.load(str(tables))
    return MemoryClient.connect(address, config=config.client)


def _field(request: Request) -> str:
    return "prompt" if request.prompt_token_ids is None else "prompt_token_ids"

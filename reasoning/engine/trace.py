"""A timeline of an engine for Perfetto: its steps, the waits within them, and every lookup."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Sequence as Several
from pathlib import Path
from typing import Any

from reasoning.engine.runner import Output
from reasoning.scheduling.sequence import Fetch, Piece

_TRACK = 1


class Trace:
    """Collects events in the Chrome trace format, about twenty a step, until they are written to a file.

    The track "engine" holds a span for each step, named by what ran. A step consists of "ask" (hash tokens and send
    lookups), "wait for rows" (until a batch can begin), "model", which contains the waits of single layers, and
    "choose" (choose tokens and send their lookups). Lookups are spans from sent to landed, on tracks of their own, a
    group for each layer. Format: Chrome's Trace Event Format, which https://ui.perfetto.dev opens.
    """

    def __init__(self) -> None:
        self._begin = time.perf_counter()
        self._numbers = itertools.count()
        self._events: list[dict[str, Any]] = [
            _named("process_name", "engram"),
            _named("thread_name", "engine"),
        ]
        self._ran: tuple[str, dict[str, Any]] | None = None

    def model(self, pieces: Several[Piece], output: Output) -> None:
        """Record a forward pass over `pieces`, which are done, and the lookups that no other piece needs."""
        self._span("model", output.began, output.ended)
        for wait in output.waits:
            self._span(f"wait for rows of layer {wait.layer}", wait.begin, wait.end)
        for fetch in dict.fromkeys(piece.fetch for piece in pieces):
            if not fetch.live:
                self._lookup(fetch)
        self._span("choose", output.ended, time.perf_counter())
        self._ran = _description(pieces, output)

    def failed(self, fetch: Fetch, reason: str) -> None:
        """Record a forward pass that was abandoned because the rows of a lookup did not arrive."""
        self._lookup(fetch)
        self._ran = "failed", {"error": reason}

    def step(self, begin: float, asked: float, taken: float) -> None:
        """Record a step that ends now. A step that ran nothing is not recorded.

        Args:
            begin: time when the step began, by `time.perf_counter`.
            asked: time when its lookups had been sent.
            taken: time when its batch was scheduled.
        """
        if self._ran is None:
            return
        name, args = self._ran
        self._ran = None
        self._span(name, begin, time.perf_counter(), **args)
        self._span("ask", begin, asked)
        self._span("wait for rows", asked, taken)

    def _lookup(self, fetch: Fetch) -> None:
        if fetch.rows is None:
            return
        args = {"tokens": sum(len(piece.token_ids) for piece in fetch.pieces), "for": _owner(fetch.pieces)}
        for layer, (sent, landed) in fetch.rows.travels.items():
            event = {"cat": "lookup", "name": f"rows of layer {layer}", "id": next(self._numbers)}
            self._add(event | {"ph": "b", "ts": self._at(sent), "args": args})
            self._add(event | {"ph": "e", "ts": self._at(landed)})

    def _span(self, name: str, begin: float, end: float, **args: object) -> None:
        at = self._at(begin)
        self._add({"ph": "X", "name": name, "ts": at, "dur": max(0.0, round(self._at(end) - at, 1)), "args": args})

    def _at(self, moment: float) -> float:
        return round((moment - self._begin) * 1e6, 1)

    def _add(self, event: dict[str, Any]) -> None:
        self._events.append(event | {"pid": os.getpid(), "tid": _TRACK})

    def write(self, path: Path) -> None:
        """Write the recorded events as JSON, replacing the file."""
        path.write_text(json.dumps({"traceEvents": self._events, "displayTimeUnit": "ms"}))


def _named(what: str, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": os.getpid(), "tid": _TRACK, "args": {"name": name}}


def _description(pieces: Several[Piece], output: Output) -> tuple[str, dict[str, Any]]:
    """Return the name of a step, after what it ran, and its numbers."""
    prompt_tokens = sum(len(piece.token_ids) for piece in pieces if _of_prompt(piece))
    cohorts = dict.fromkeys(f"cohort {piece.sequence.cohort}" for piece in pieces if not _of_prompt(piece))
    return " + ".join([*cohorts, *(["prompts"] if prompt_tokens else [])]), {
        "sequences": len(output.works),
        "tokens": sum(len(piece.token_ids) for piece in pieces),
        "prompt tokens": prompt_tokens,
    }


def _of_prompt(piece: Piece) -> bool:
    return piece.start < piece.sequence.prompt_tokens


def _owner(pieces: Several[Piece]) -> str:
    first = pieces[0].sequence
    return f"prompt of {first.request.id}" if _of_prompt(pieces[0]) else f"cohort {first.cohort}"

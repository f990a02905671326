"""What a step runs, sequence by sequence."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from reasoning.scheduling.sequence import Piece, Sequence


@dataclass(frozen=True)
class Work:
    """A sequence's part of a step: adjacent pieces, run as one."""

    sequence: Sequence
    pieces: tuple[Piece, ...]
    logits: int
    """Number of positions at the end whose logits are needed: those of the last known token and of each draft."""
    offset: int
    """Index of its first token among those of the step."""

    @property
    def start(self) -> int:
        """Position of its first token."""
        return self.pieces[0].start

    @property
    def end(self) -> int:
        """Position after its last token."""
        return self.pieces[-1].end

    @property
    def token_ids(self) -> list[int]:
        """The tokens of all pieces."""
        return [token for piece in self.pieces for token in piece.token_ids]

    @property
    def drafts(self) -> list[int]:
        """The drafts at the end of the tokens."""
        last = self.pieces[-1]
        return last.token_ids[len(last.token_ids) - last.drafts :]

    @property
    def decodes(self) -> bool:
        """Whether it consists of a sequence's last known token and drafts alone."""
        return self.end - self.start == 1 + self.pieces[-1].drafts


def works_of(pieces: Iterable[Piece]) -> list[Work]:
    """Collect the pieces of each sequence, in the order in which sequences first appear."""
    by_sequence: dict[Sequence, list[Piece]] = {}
    for piece in pieces:
        by_sequence.setdefault(piece.sequence, []).append(piece)
    works: list[Work] = []
    offset = 0
    for sequence, group in by_sequence.items():
        works.append(Work(sequence, tuple(group), _logits(group[-1]), offset))
        offset += works[-1].end - works[-1].start
    return works


def _logits(last: Piece) -> int:
    return last.drafts + 1 if last.final else 0

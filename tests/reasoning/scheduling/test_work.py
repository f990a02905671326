"""Pieces of a step, collected by sequence: where each sequence's tokens begin, and which of them are drafts."""

from __future__ import annotations

from reasoning.request import Request
from reasoning.scheduling.sequence import Piece, Sequence
from reasoning.scheduling.work import works_of


def sequence(tokens, order=0):
    return Sequence(Request(str(order), prompt_token_ids=tuple(tokens)), tokens, limit=100, order=order)


def test_pieces_of_a_sequence_become_one_work_at_its_offset():
    first, second, third = sequence([1, 2, 3, 4, 5], 0), sequence([7], 1), sequence([8, 9, 10], 2)
    pieces = [
        Piece(first, 0, [1, 2]),
        Piece(first, 2, [3, 4]),
        Piece(second, 0, [7, 70, 71], drafts=2),
        Piece(third, 1, [9, 10]),
    ]
    works = works_of(pieces)
    assert [(work.sequence, work.start, work.end, work.offset) for work in works] == [
        (first, 0, 4, 0),
        (second, 0, 3, 4),
        (third, 1, 3, 7),
    ]
    assert [work.token_ids for work in works] == [[1, 2, 3, 4], [7, 70, 71], [9, 10]]
    assert [work.drafts for work in works] == [[], [70, 71], []]
    assert [work.logits for work in works] == [0, 3, 1]  # the first sequence's prompt goes on
    assert [work.decodes for work in works] == [False, True, False]

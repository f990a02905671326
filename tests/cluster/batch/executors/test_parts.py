from __future__ import annotations

import pytest

from cluster.batch.executors.parts import LINE_ATTEMPTS, Part, given_up
from reasoning.request import Request


def requests(count):
    return [Request(str(number), "x") for number in range(1, count + 1)]


def play(poison, count):
    """Run a chunk on a worker that dies of some lines; what was finished, what was given up, and how often it died."""
    todo, finished, lost, deaths = [Part.of(0, requests(count))], [], [], 0
    while todo:
        part = todo.pop(0)
        if poison & {request.id for request in part.requests}:
            deaths += 1
            instead = part.after_death(0)
            todo += instead
            lost += [] if instead else [request.id for request in part.requests]
        else:
            finished += [request.id for request in part.requests]
    return set(finished), set(lost), deaths


@pytest.mark.parametrize("count", [1, 2, 3, 16, 17])
def test_every_line_is_finished_or_found_to_blame(count):
    for poison in ({"1"}, {str(count)}, {"1", str(count)}, {str(number) for number in range(1, count + 1)}):
        finished, lost, _ = play(poison, count)
        assert lost == poison
        assert finished == {request.id for request in requests(count)} - poison


def test_one_line_to_blame_costs_few_workers():
    assert play({"11"}, 16)[2] == 2 + 3 + LINE_ATTEMPTS  # twice all of them, then 8, 4 and 2 lines, then it alone
    assert play({"1"}, 1)[2] == LINE_ATTEMPTS


def test_a_chunk_whose_worker_died_of_something_else_is_not_divided():
    [again] = Part.of(3, requests(4)).after_death(1)
    assert (again.chunk, again.requests, again.died_on) == (3, tuple(requests(4)), 1)


def test_a_line_that_is_given_up_says_why():
    failure = given_up("7", "killed")
    assert (failure.id, failure.field) == ("7", "line")
    assert "killed its worker 3 times (killed)" in failure.message


def test_a_part_names_its_lines():
    assert (str(Part.of(0, requests(3))), str(Part.of(0, requests(1)))) == ("lines 1 to 3", "line 1")

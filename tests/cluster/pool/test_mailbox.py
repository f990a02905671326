"""Calls from many threads that one thread takes."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from cluster.pool.mailbox import Mailbox
from memory_service import ShardUnavailable


def test_calls_from_other_threads_run_in_turn_on_the_thread_that_reads():
    mailbox, ran_on = Mailbox(), set()

    def take(answer, number):
        ran_on.add(threading.get_ident())
        answer.set_result(number * number)

    with ThreadPoolExecutor(8) as threads:
        answers = [threads.submit(mailbox.ask, lambda answer, n=n: take(answer, n)) for n in range(50)]
        while not all(answer.done() for answer in answers):
            mailbox.read(0.01)
    assert [answer.result() for answer in answers] == [number * number for number in range(50)]
    assert ran_on == {threading.get_ident()}


def test_an_error_of_a_call_is_raised_to_its_caller():
    mailbox = Mailbox()
    with ThreadPoolExecutor(1) as thread:
        call = thread.submit(mailbox.ask, lambda answer: answer.set_exception(KeyError("lost")))
        mailbox.read(30)
        with pytest.raises(KeyError, match="lost"):
            call.result()


def test_a_closed_mailbox_takes_no_calls_and_runs_its_last_function_last():
    mailbox, ran = Mailbox(), []
    mailbox.post(lambda: ran.append("mail"))
    mailbox.close(lambda: ran.append("last"))
    with pytest.raises(ShardUnavailable, match="is being stopped"):
        mailbox.ask(lambda answer: ran.append("call"))
    mailbox.read(0)
    assert ran == ["mail", "last"]


def test_reading_an_empty_mailbox_ends_when_the_time_is_up():
    Mailbox().read(0.01)

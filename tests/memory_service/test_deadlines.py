import threading
import time

from memory_service.deadlines import Deadlines


def test_calls_back_in_order_of_deadline_not_of_arrival() -> None:
    deadlines, heard, done = Deadlines(), [], threading.Event()
    now = time.monotonic()
    deadlines.watch(now + 0.06, done.set)
    deadlines.watch(now + 0.04, lambda: heard.append("second"))
    deadlines.watch(now + 0.02, lambda: heard.append("first"))
    assert done.wait(30)
    assert heard == ["first", "second"]
    deadlines.close()


def test_what_was_cancelled_is_not_called() -> None:
    deadlines, heard, done = Deadlines(), [], threading.Event()
    now = time.monotonic()
    key = deadlines.watch(now + 0.01, lambda: heard.append("cancelled"))
    deadlines.watch(now + 0.02, done.set)
    deadlines.cancel(key)
    assert done.wait(30)
    assert heard == []
    deadlines.close()


def test_nothing_is_called_after_close() -> None:
    deadlines, heard = Deadlines(), []
    deadlines.watch(time.monotonic() + 0.05, lambda: heard.append(1))
    deadlines.close()
    time.sleep(0.1)
    assert heard == []

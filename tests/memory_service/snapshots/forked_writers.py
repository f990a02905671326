"""A process that writes generations in forks of itself, and kills them; its argument is their directory.

Each line of stdin is "GENERATION DELAY_S"; the answer is how long the fork ran and its exit status, -9 if killed.
"""

from __future__ import annotations

import os
import signal
import sys
import time

from .series import write_generation


def write_and_die(directory: str, generation: int, delay_s: float) -> tuple[float, int]:
    start = time.perf_counter()
    writer = os.fork()
    if writer == 0:
        write_generation(directory, generation)
        os._exit(0)
    look = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while time.perf_counter() - start < delay_s and not os.waitid(os.P_PID, writer, look):
        time.sleep(0.0002)
    os.kill(writer, signal.SIGKILL)
    _, status = os.waitpid(writer, 0)
    return time.perf_counter() - start, os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    for line in sys.stdin:
        generation, delay_s = line.split()
        print(*write_and_die(sys.argv[1], int(generation), float(delay_s)), flush=True)

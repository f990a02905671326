"""A client in a process that was forked from the one that connected it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
PROGRAM = """
import os, sys, threading
import numpy as np
from memory_service import MemoryClient, MemoryServiceError

def refusal(call):
    try:
        call()
    except MemoryServiceError as error:
        return str(error)

client = MemoryClient.connect(sys.argv[1])
before = client.lookup("engram.1", np.arange(9))
before.result()
under_way = type(before)()
child = os.fork()
if not child:
    threading.Timer(20, os._exit, [3]).start()
    errors = [refusal(lambda: client.lookup("engram.1", np.arange(9), timeout_s=1)), refusal(under_way.result)]
    errors += [refusal(under_way.exception), refusal(lambda: client.snapshot("nowhere"))]
    client.close()
    told = all(error and "connect a new client in the forked process" in error for error in errors)
    os._exit(0 if told and len(before.result().unique) == 9 else 2)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(status, len(client.lookup("engram.1", np.arange(50)).result().unique))
client.close()
"""


def test_a_forked_process_is_told_to_connect_anew_and_its_parent_goes_on(cluster) -> None:
    address = cluster.start(2).servers[0].address
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, address]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.stdout.split() == ["0", "50"], done.stderr

"""Worker processes of the tests: a group of ranks in one program, forked once its imports are done.

    python -m tests.reasoning.training.ranks RANKS FUNCTION FOLDER

calls FUNCTION of `rank_jobs` on every rank, with a process group over gloo that meets in a file, not at a port.
"""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist

ROOT = Path(__file__).parents[3]
_TIMEOUT_S = 180


def run_ranks(ranks: int, function: str, folder: Path) -> None:
    """Call a function of `rank_jobs` with a folder on some ranks, and wait; fails with their output if one fails."""
    command = [sys.executable, "-m", "tests.reasoning.training.ranks", str(ranks), function, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=_TIMEOUT_S)
    assert done.returncode == 0, done.stderr[-4000:]


def _main(ranks: int, function: str, folder: Path) -> int:
    from tests.reasoning.training import rank_jobs

    context = multiprocessing.get_context("fork")
    store = folder / f"{function}-{ranks}.store"
    arguments = [(getattr(rank_jobs, function), folder, store, rank, ranks) for rank in range(ranks)]
    processes = [context.Process(target=_rank, args=each, daemon=True) for each in arguments]
    for process in processes:
        process.start()
    while any(process.exitcode is None for process in processes):
        if any(process.exitcode for process in processes):  # the others would wait for it
            return 1
        for process in processes:
            process.join(0.05)
    return max(abs(process.exitcode or 0) for process in processes)


def _rank(job, folder: Path, store: Path, rank: int, ranks: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(str(store), ranks), rank=rank, world_size=ranks)
    try:
        job(folder)
        dist.barrier()
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(_main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])))

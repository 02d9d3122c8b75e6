"""Processes and threads that a grid works with."""

import contextlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import active_children, get_context, parent_process

import torch


def count_workers(runs: int) -> int:
    """`$MNV3NB_WORKERS` (1 if it is not set), but no more than `runs`; raises ValueError if it is no whole number ≥ 1."""
    value = os.environ.get("MNV3NB_WORKERS", "1")
    if not value.isdigit() or int(value) < 1:
        raise ValueError(f"MNV3NB_WORKERS must be a whole number ≥ 1, got {value!r}")
    return min(int(value), runs)


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Torch computes with `count` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def processes(count: int) -> Iterator[Executor]:
    """Processes of one thread each; if this one is interrupted they end at once, and their runs go on from the last epoch."""
    others = set(active_children())
    pool = ProcessPoolExecutor(count, get_context("spawn"), _begin)
    try:
        yield pool
    except BaseException:
        for process in set(active_children()) - others:
            process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this process as soon as the one that started it is gone, even if that was killed and could not say so."""
    parent_process().join()
    os._exit(1)

"""Many runs: which are missing, in which order, in how many processes, and how long it will take."""

import contextlib
import os
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, ProcessPoolExecutor, wait
from multiprocessing import active_children, get_context, parent_process

import torch

from .cluster import Courier
from .config import RunConfig
from .find_or_train import Runs, dataset_of
from .folder import Run

STOP_ONE_RUN = ("FloatingPointError", "KilledWorker")  # the latter Dask's: its workers died again and again
MANY = 100  # runs on the way at a time where each takes its parent's network along, some 17 MB
WORTH_A_PROCESS = 20_000  # images to train on; below, starting processes takes longer than the work


def plan(runs: Runs, configs: Iterable[RunConfig]) -> list[RunConfig]:
    """The runs still to train for `configs`, each once, parents before children."""
    missing: dict[str, RunConfig] = {}

    def add(config: RunConfig, model: bool = False) -> None:
        if config.key not in missing and not runs.find(config, model):
            if config.parent:
                add(config.parent, model=True)
            missing[config.key] = config

    for config in configs:
        add(config)
    return list(missing.values())


def run_grid(runs: Runs, configs: Iterable[RunConfig], executor: Executor | None = None, done=None) -> list[Run]:
    """`runs.run` for each config, in order; parents come first, every run is trained once.

    `executor`: any `concurrent.futures.Executor` (processes, Dask, a cluster); workers need this package and the data,
    and use the folder of `runs` where they see it. None: here, one after another, or in `$MNV3NB_WORKERS` processes of
    one thread each, which on a CPU is faster than one process of many threads. `done(run)` is called here after each
    training, before the run's children start. A run that diverges, or whose workers keep dying, does not stop the
    others: RuntimeError at the end lists all that failed.
    """
    configs = list(configs)
    missing = plan(runs, configs)
    work = {config.key: work_left(runs, config) for config in missing}
    workers = min(count_workers(), len(missing))
    with contextlib.ExitStack() as stack:
        limit = len(missing) if executor else 1
        if executor is None and workers > 1 and sum(work.values()) > WORTH_A_PROCESS:
            executor, limit = stack.enter_context(processes(workers)), workers
        courier = Courier(runs, executor) if executor and missing else None
        if courier:
            stack.callback(courier.mark.close)  # which removes it
        failed = _train_all(runs, missing, work, courier, limit, done)
    if failed:
        raise RuntimeError(f"{len(failed)} run(s) failed:\n" + "\n".join(failed.values()))
    return [runs.run(config) for config in configs]


def count_workers() -> int:
    """`$MNV3NB_WORKERS` (1 if it is not set); raises ValueError if it is no integer ≥ 1."""
    value = os.environ.get("MNV3NB_WORKERS", "1")
    if not value.isdigit() or int(value) < 1:
        raise ValueError(f"MNV3NB_WORKERS must be an integer ≥ 1, got {value!r}")
    return int(value)


def work_left(runs: Runs, config: RunConfig) -> int:
    """Images still to train on, one to test on counted as a third: what the time left is estimated by."""
    data, folder, stored = dataset_of(config), runs.folder / config.key, 0
    with contextlib.suppress(OSError):
        if (folder / "state.safetensors").is_file():
            stored = (folder / "metrics.csv").read_bytes().count(b"\n") - 2  # less the header and epoch 0
    return max(1, config.train.epochs - stored) * (len(data.train_images) + len(data.test_images) // 3)


def _train_all(runs, configs: list[RunConfig], work: dict[str, int], courier, limit: int, done) -> dict[str, str]:
    """Trains `configs`, at most `limit` at a time, the first that can start first; returns what failed, by key."""
    waiting, running, failed = {config.key: config for config in configs}, {}, {}
    start = time.perf_counter()
    while waiting or running:
        most = min(limit, MANY) if courier and courier.blind else limit
        for config in _ready(waiting, running.values(), failed)[: max(0, most - len(running))]:
            config = waiting.pop(config.key)
            running[courier.submit(config) if courier else _run_here(runs, config)] = config
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            config = running.pop(future)
            try:
                run = courier.receive(config, future.result()) if courier else future.result()
            except CancelledError:
                raise RuntimeError(f"run {config.key} was cancelled, or its scheduler ended") from None
            except Exception as error:
                if type(error).__name__ not in STOP_ONE_RUN:
                    raise
                failed[config.key] = f"{config.label}: {error}"
                continue
            if run is None:
                waiting = {config.key: config} | waiting
                continue
            if done:
                done(run)
            if runs.progress:
                todo = sum(work[c.key] for c in (*waiting.values(), *running.values()))
                left = (time.perf_counter() - start) * todo / (sum(work.values()) - todo)
                number = f"{len(configs) - len(waiting) - len(running)}/{len(configs)}"
                text = f"{config.key} {config.label}: {run.accuracy:.2%}, {run.result['seconds']:.0f} s"
                print(f"run {number} {text}; about {left:.0f} s left", flush=True)
    return failed


def _ready(waiting: dict[str, RunConfig], running: Iterable[RunConfig], failed: dict[str, str]) -> list[RunConfig]:
    """Those of `waiting` whose parents are there; those whose parents failed move to `failed`."""
    busy, ready = {config.key for config in running}, []
    for key, config in list(waiting.items()):
        parent = config.parent.key if config.parent else None
        if parent in failed:
            failed[key] = f"{config.label}: its parent failed"
            del waiting[key]
        elif parent not in busy and parent not in waiting:
            ready.append(config)
    return ready


def _run_here(runs: Runs, config: RunConfig) -> Future:
    future = Future()
    try:  # model=True: what is missing is trained whole, though there may be a record of it without its network
        future.set_result(runs.run(config, model=True))
    except FloatingPointError as error:
        future.set_exception(error)
    return future


@contextlib.contextmanager
def processes(count: int) -> Iterator[Executor]:
    """Processes of one thread each; if this one is interrupted they end at once, and their runs can be resumed."""
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
    """Ends this process as soon as the one that started it is gone, even if that was killed."""
    parent_process().join()
    os._exit(1)

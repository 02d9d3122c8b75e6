"""Many runs: which are missing, in which order they are trained, in how many processes, and how long that takes."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, ProcessPoolExecutor, wait
from multiprocessing import active_children, get_context, parent_process

import torch

from ..system.progress import duration
from .cluster import RemoteWorkers
from .config import RunConfig
from .find_or_train import Runs, dataset_of
from .folder import Run, RunFolder

STOP_ONE_RUN = ("FloatingPointError", "KilledWorker")  # it diverged; its Dask workers died again and again
WORTH_PROCESSES = 20_000 * 32**2  # pixels to train on: below, starting processes takes longer than they save


def plan(runs: Runs, configs: Iterable[RunConfig]) -> list[RunConfig]:
    """The runs still to train for `configs`, each once, parents before children."""
    missing: dict[str, RunConfig] = {}

    def add(config: RunConfig, model: bool = False) -> None:
        if config.key in missing or runs.find(config, model):
            return
        if config.parent:
            add(config.parent, model=True)  # to be pruned, its network is needed
        missing[config.key] = config

    for config in configs:
        add(config)
    return list(missing.values())


def run_grid(
    runs: Runs,
    configs: Iterable[RunConfig],
    executor: Executor | None = None,
    done: Callable[[Run], object] | None = None,
) -> list[Run]:
    """`runs.run` for each config, in order; parents come first, every run is trained once.

    `executor`: any `concurrent.futures.Executor` (processes, Dask, a cluster), see README.md here. Its workers need this
    package and the data; they train in their own `$MNV3NB_HOME/runs`, and finished runs are stored under `runs`.
    None: here, one after another, or in `$MNV3NB_WORKERS` processes of one thread each, which on a CPU is faster than
    one process of many threads. `done(run)` is called here after each training, before the run's children start.
    A run that diverges, or whose workers keep dying, does not stop the others: RuntimeError at the end lists them.
    """
    configs = list(configs)
    missing = plan(runs, configs)
    if executor:
        failed = _train_all(missing, RemoteWorkers(runs, executor), done, runs.progress)
    else:
        failed = _train_here(runs, missing, done)
    if failed:
        raise RuntimeError(f"{len(failed)} run(s) failed:\n" + "\n".join(failed.values()))
    return [runs.run(config) for config in configs]


def count_workers() -> int:
    """`$MNV3NB_WORKERS` (1 if it is not set); raises ValueError if it is no integer ≥ 1."""
    value = os.environ.get("MNV3NB_WORKERS", "1")
    if not value.isdigit() or int(value) < 1:
        raise ValueError(f"MNV3NB_WORKERS must be an integer ≥ 1, got {value!r}")
    return int(value)


def _train_here(runs: Runs, configs: list[RunConfig], done: Callable[[Run], object] | None) -> dict[str, str]:
    """Trains `configs` in this process or, if that is worth it, in several; returns what failed, by key."""
    count = min(count_workers(), len(configs))
    work = {config.key: work_left(runs, config) for config in configs}
    if count <= 1 or sum(work.values()) <= WORTH_PROCESSES:
        workers = LocalWorkers(runs, ThisProcess(), Pace(work, 1))
        return _train_all(configs, workers, done, runs.progress)
    silent = Runs(runs.folder, runs.recorded, runs.device, progress=False)
    with processes(count) as pool:
        workers = LocalWorkers(silent, pool, Pace(work, count))
        return _train_all(configs, workers, done, runs.progress)


def _train_all(
    configs: list[RunConfig],
    workers: "LocalWorkers | RemoteWorkers",
    done: Callable[[Run], object] | None,
    progress: bool,
) -> dict[str, str]:
    """Trains `configs`, each when its parent is finished and a worker is free; returns what failed, by key."""
    waiting = {config.key: config for config in configs}
    running: dict[Future, RunConfig] = {}
    failed: dict[str, str] = {}
    while waiting or running:
        free = workers.limit - len(running)
        for config in _ready(waiting, running.values())[:free]:
            del waiting[config.key]
            running[workers.start(config)] = config
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            config = running.pop(future)
            try:
                run = workers.collect(config, future)
            except CancelledError:
                raise RuntimeError(f"run {config.key} was cancelled, or its scheduler ended") from None
            except Exception as error:
                if type(error).__name__ not in STOP_ONE_RUN:
                    raise
                failed[config.key] = f"{config.label}: {error}"
                _fail_children(waiting, failed)
                continue
            if done:
                done(run)
            if progress:
                number = len(configs) - len(waiting) - len(running)
                seconds_left = workers.seconds_left(waiting.values(), running.values())
                _print_finished(run, f"{number}/{len(configs)}", seconds_left)
    return failed


def _ready(waiting: dict[str, RunConfig], running: Iterable[RunConfig]) -> list[RunConfig]:
    """Those of `waiting` whose parents are finished, in their order: the most valuable first."""
    unfinished = {*waiting, *(config.key for config in running)}
    return [config for config in waiting.values() if not config.parent or config.parent.key not in unfinished]


def _fail_children(waiting: dict[str, RunConfig], failed: dict[str, str]) -> None:
    """Moves the runs whose parents have failed from `waiting` to `failed`, and so their own children."""
    for key, config in list(waiting.items()):  # parents come before children
        if config.parent and config.parent.key in failed:
            failed[key] = f"{config.label}: its parent failed"
            del waiting[key]


def _print_finished(run: Run, number: str, seconds_left: float | None) -> None:
    text = f"run {number} {run.key} {run.config.label}: {run.accuracy:.2%}, {run.result['seconds']:.0f} s"
    if seconds_left is not None:
        text += f"; about {duration(seconds_left)} left"
    print(text, flush=True)


class LocalWorkers:
    """Processes of this machine: they train in the caller's folder, where interrupted runs resume."""

    def __init__(self, runs: Runs, pool: Executor, pace: "Pace"):
        self.runs = runs
        self.pool = pool
        self.pace = pace
        self.limit = pace.workers

    def start(self, config: RunConfig) -> Future:
        self.pace.begin(config.key, time.perf_counter())
        # model=True: what is missing is trained whole, though there may be a record of it without its network
        return self.pool.submit(self.runs.run, config, model=True)

    def collect(self, config: RunConfig, future: Future) -> Run:
        run = future.result()
        self.pace.end(config.key, time.perf_counter())
        return run

    def seconds_left(self, waiting: Iterable[RunConfig], running: Iterable[RunConfig]) -> float | None:
        waiting_keys = [config.key for config in waiting]
        running_keys = [config.key for config in running]
        return self.pace.seconds_left(waiting_keys, running_keys, time.perf_counter())


class ThisProcess(Executor):
    """Does what is submitted at once, in the caller's thread."""

    def submit(self, function, /, *args, **named) -> Future:
        future = Future()
        try:
            future.set_result(function(*args, **named))
        except Exception as error:
            future.set_exception(error)
        return future


def work_left(runs: Runs, config: RunConfig) -> int:
    """Pixels still to train on; one to test on counts as a third, since it has no backward pass."""
    data = dataset_of(config)
    images = len(data.train_images) + len(data.test_images) // 3
    epochs = config.train.epochs - RunFolder(runs.folder / config.key).epochs_stored()
    return max(1, epochs) * images * config.train.image_size**2


class Pace:
    """How fast the workers of a grid have been: what its time left is estimated from."""

    def __init__(self, work: dict[str, int], workers: int):
        self.work = work  # of each run, by key: see `work_left`
        self.workers = workers  # number of runs trained at a time
        self.began: dict[str, float] = {}  # when each training began, in seconds
        self.work_done = 0  # of the finished runs
        self.seconds_spent = 0.0  # on them, by all workers together

    def begin(self, key: str, now: float) -> None:
        self.began[key] = now

    def end(self, key: str, now: float) -> None:
        self.work_done += self.work[key]
        self.seconds_spent += now - self.began[key]

    def seconds_left(self, waiting: Iterable[str], running: Iterable[str], now: float) -> float | None:
        """Until the runs of these keys are finished; None before the first has finished, or if none is left."""
        if not self.work_done:
            return None
        seconds_per_work = self.seconds_spent / self.work_done
        left = [self.work[key] * seconds_per_work for key in waiting]
        for key in running:
            expected = self.work[key] * seconds_per_work
            left.append(max(0.0, expected - (now - self.began[key])))
        if not left:
            return None
        return max(sum(left) / self.workers, max(left))  # two workers never share a run


@contextlib.contextmanager
def processes(count: int) -> Iterator[Executor]:
    """Processes of one thread each; if this one is interrupted they end at once, and their runs can be resumed."""
    others = set(active_children())
    pool = ProcessPoolExecutor(count, get_context("spawn"), _begin_process)
    try:
        yield pool
    except BaseException:
        for process in set(active_children()) - others:
            process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_process() -> None:
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this process as soon as the one that started it is gone, even if that was killed."""
    parent_process().join()
    os._exit(1)

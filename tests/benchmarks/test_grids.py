"""Grids of tiny runs on Dask's workers and in a pool of processes: what one run costs beside its own work.

MNV3NB_BENCH_RUNS sets their number.
"""

import contextlib
import os
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from distributed import Client, LocalCluster

from mnv3nb import TrainConfig
from mnv3nb.runs.config import RunConfig
from mnv3nb.runs.find_or_train import Runs
from mnv3nb.runs.grid import processes, run_grid

RUNS, ROUNDS = int(os.environ.get("MNV3NB_BENCH_RUNS", "1000")), 5
CORES = os.cpu_count() or 1


def runs_without_training(count: int) -> list[RunConfig]:
    """So many networks drawn, measured on a few images of 8×8 and stored: as little work as a run can have."""
    train = TrainConfig(epochs=0, image_size=8)
    return [RunConfig("digits", replace(train, seed=i), train_images=16, holdout=16) for i in range(count)]


@contextlib.contextmanager
def dask_workers(count: int):
    how = {"n_workers": count, "threads_per_worker": 1, "memory_limit": 0}
    how |= {"host": "127.0.0.1", "dashboard_address": None}
    with patch.dict(os.environ):  # Dask sets variables for its workers, which other processes would have, too
        with LocalCluster(**how) as cluster, Client(cluster) as client:
            yield client.get_executor()


def in_a_grid(folder: Path, configs: list[RunConfig], executor) -> float:
    """Seconds for all of `configs`; each network is deleted as soon as its run is finished."""
    runs = Runs(folder, folder / "none", progress=False)
    start = time.perf_counter()
    run_grid(runs, configs, executor, done=lambda run: (run.folder / "model.safetensors").unlink())
    return time.perf_counter() - start


def in_a_loop(folder: Path, configs: list[RunConfig]) -> float:
    """The same one after another, without a grid."""
    runs = Runs(folder, folder / "none", progress=False)
    start = time.perf_counter()
    for config in configs:
        (runs.run(config, model=True).folder / "model.safetensors").unlink()
    return time.perf_counter() - start


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize(("name", "pool"), [("Dask", dask_workers), ("ProcessPoolExecutor", processes)])
def test_a_grid_of_tiny_runs(record, tmp_path, name, pool, workers):
    share, few, times = RUNS // ROUNDS, max(3, RUNS // 50), []
    configs = runs_without_training(share * ROUNDS + 5 * workers)
    with processes(1) as one, contextlib.ExitStack() as stack:
        one.submit(in_a_loop, tmp_path / "alone", configs[-3:]).result()  # the workers load torch and the data
        executor = stack.enter_context(pool(workers))
        in_a_grid(tmp_path, configs[share * ROUNDS :], executor)
        for start in range(0, share * ROUNDS, share):  # in turns: the machine's speed changes within minutes
            part = configs[start : start + share]
            alone = one.submit(in_a_loop, tmp_path / "alone", part[:few]).result() / few
            wall = in_a_grid(tmp_path, part, executor)
            times.append((1000 * alone, 1000 * wall * min(workers, CORES) / share))
    alone, busy = np.array(times).T
    low, middle, high = np.quantile(alone / busy, [0.25, 0.5, 0.75])
    record(
        "grids",
        executor=name,
        workers=workers,
        runs=share * ROUNDS,
        alone_ms=round(np.median(alone)),
        ms_per_run=round(np.median(busy)),
        overhead_ms=round(np.median(busy - alone)),
        efficiency=round(middle, 2),
        low=round(low, 2),
        high=round(high, 2),
        threads=1,
    )

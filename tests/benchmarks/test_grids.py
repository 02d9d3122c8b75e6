"""Grids of tiny runs on Dask's workers and in a pool of processes: what a run costs beside its own work.

MNV3NB_BENCH_RUNS sets the number of runs.
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

RUNS = int(os.environ.get("MNV3NB_BENCH_RUNS", "1000"))
ROUNDS = 5
CORES = os.cpu_count() or 1


def runs_without_training(count: int) -> list[RunConfig]:
    """Runs that draw a network, measure it on a few images of 8×8 pixels and store it: the least work a run can have."""
    train = TrainConfig(epochs=0, image_size=8)
    return [RunConfig("digits", replace(train, seed=i), train_images=16, holdout=16) for i in range(count)]


@contextlib.contextmanager
def dask_workers(count: int):
    local = {"host": "127.0.0.1", "dashboard_address": None}
    with patch.dict(os.environ):  # Dask sets variables for its workers, which other processes would inherit
        with (
            LocalCluster(n_workers=count, threads_per_worker=1, memory_limit=0, **local) as cluster,
            Client(cluster) as client,
        ):
            yield client.get_executor()


def seconds_in_a_grid(configs: list[RunConfig], executor) -> float:
    """Seconds for all of `configs`; each network is deleted as soon as its run is finished."""
    runs = Runs(progress=False)
    start = time.perf_counter()
    run_grid(runs, configs, executor, done=lambda run: (run.folder / "model.safetensors").unlink())
    return time.perf_counter() - start


def seconds_in_a_loop(folder: Path, configs: list[RunConfig]) -> float:
    """The same one after another, without a grid."""
    runs = Runs(folder, folder / "none", progress=False)
    start = time.perf_counter()
    for config in configs:
        run = runs.run(config, model=True)
        (run.folder / "model.safetensors").unlink()
    return time.perf_counter() - start


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize(("name", "pool"), [("Dask", dask_workers), ("ProcessPoolExecutor", processes)])
def test_a_grid_of_tiny_runs(record, tmp_path, monkeypatch, name, pool, workers):
    monkeypatch.setenv("MNV3NB_HOME", str(tmp_path))  # the workers' home, too: nothing is stored twice
    share = RUNS // ROUNDS
    few = max(3, RUNS // 50)
    configs = runs_without_training(share * ROUNDS + 5 * workers)
    first = configs[share * ROUNDS :]
    alone_times = []
    busy_times = []
    with processes(1) as one, pool(workers) as executor:
        one.submit(seconds_in_a_loop, tmp_path / "alone", first[-3:]).result()  # the workers load torch and the data
        seconds_in_a_grid(first, executor)
        for start in range(0, share * ROUNDS, share):  # in turns: the machine's speed changes within minutes
            part = configs[start : start + share]
            alone = one.submit(seconds_in_a_loop, tmp_path / "alone", part[:few]).result()
            wall = seconds_in_a_grid(part, executor)
            alone_times.append(1000 * alone / few)
            busy_times.append(1000 * wall * min(workers, CORES) / share)
    alone_ms = np.array(alone_times)
    busy_ms = np.array(busy_times)
    low, middle, high = np.quantile(alone_ms / busy_ms, [0.25, 0.5, 0.75])
    record(
        "grids",
        executor=name,
        workers=workers,
        runs=share * ROUNDS,
        alone_ms=round(np.median(alone_ms)),
        ms_per_run=round(np.median(busy_ms)),
        overhead_ms=round(np.median(busy_ms - alone_ms)),
        efficiency=round(middle, 2),
        low=round(low, 2),
        high=round(high, 2),
        threads=1,
    )

"""Grids of tiny runs on Dask's workers and in a pool of processes: what one run costs beside its own work.

MNV3NB_BENCH_RUNS sets their number.
"""

import contextlib
import os
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from distributed import Client, LocalCluster

from mnv3nb import TrainConfig
from mnv3nb.experiments.config import PruneConfig, RunConfig
from mnv3nb.experiments.grid import processes, run_grid
from mnv3nb.experiments.runs import Runs

RUNS, ROUNDS = int(os.environ.get("MNV3NB_BENCH_RUNS", "1000")), 5
CORES = os.cpu_count() or 1


def children(count: int) -> list[RunConfig]:
    """So many fine-tunings of one pruned network: a few steps on 8×8 images each."""
    train = TrainConfig(epochs=1, batch_size=8, image_size=8)
    parent = RunConfig("digits", train, train_images=16, holdout=16)
    return [replace(parent, parent=parent, prune=PruneConfig(0.9), train=replace(train, seed=i)) for i in range(count)]


@contextlib.contextmanager
def dask_workers(count: int):
    address = {"host": "127.0.0.1", "dashboard_address": None}
    with LocalCluster(count, threads_per_worker=1, memory_limit=0, **address) as cluster, Client(cluster) as client:
        yield client.get_executor()


def seconds(folder, configs: list[RunConfig], executor) -> float:
    """For all of `configs`, their parent being there, each network deleted as soon as its run is finished."""
    runs = Runs(folder, folder / "none", progress=False)
    start = time.perf_counter()
    run_grid(runs, configs, executor, done=lambda run: (run.folder / "model.safetensors").unlink())
    return time.perf_counter() - start


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize(("name", "pool"), [("Dask", dask_workers), ("ProcessPoolExecutor", processes)])
def test_a_grid_of_tiny_runs(record, tmp_path, name, pool, workers):
    torch.set_num_threads(1)
    share, few, times = RUNS // ROUNDS, max(3, RUNS // 100), []
    configs, warm = children(share * ROUNDS), children(share * ROUNDS + 5 * workers)[share * ROUNDS :]
    Runs(tmp_path, tmp_path / "none", progress=False).run(configs[0].parent)
    shutil.copytree(tmp_path, tmp_path / "here", ignore=shutil.ignore_patterns("here"))
    with pool(workers) as executor:
        seconds(tmp_path, warm, executor)  # the workers load torch and the data
        for start in range(0, len(configs), share):  # in turns: the machine's speed changes within minutes
            alone = seconds(tmp_path / "here", configs[start : start + few], None) / few
            wall = seconds(tmp_path, configs[start : start + share], executor)
            times.append((1000 * alone, 1000 * wall * min(workers, CORES) / share))
    alone, busy = np.array(times).T
    low, middle, high = np.quantile(alone / busy, [0.25, 0.5, 0.75])
    record(
        "grids",
        executor=name,
        workers=workers,
        runs=len(configs),
        alone_ms=round(np.median(alone)),
        ms_per_run=round(np.median(busy)),
        overhead_ms=round(np.median(busy - alone)),
        efficiency=round(middle, 2),
        low=round(low, 2),
        high=round(high, 2),
        threads=1,
    )

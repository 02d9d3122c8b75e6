"""Data sets of 1 and 10 GB that stay on the disk: speed and memory of training; each point in its own process."""

import json
import multiprocessing
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mnv3nb import MobileNetV3Large, TrainConfig, train
from mnv3nb.data.batches import SPLITS
from mnv3nb.data.squares import map_squares

SIDE = 224
WHERE = {"disk": "memory-mapped, read ahead", "memory": "a tensor, as other data sets"}


def write_random_images(kept: Path, gigabytes: float) -> int:
    """Write random pixels as `keep_squares` leaves images; returns the number of images."""
    count = round(gigabytes * 1e9 / (3 * SIDE * SIDE))
    kept.mkdir()
    images = np.lib.format.open_memmap(kept / "train_images.npy", "w+", np.uint8, (count, SIDE, SIDE, 3))
    rng = np.random.default_rng(0)
    for start in range(0, count, 500):
        part = images[start : start + 500]
        part[:] = np.frombuffer(rng.bytes(part.size), np.uint8).reshape(part.shape)
    images.flush()
    labels = np.arange(count) % 10
    np.save(kept / "train_labels.npy", labels)
    np.save(kept / "test_images.npy", images[:10])
    np.save(kept / "test_labels.npy", labels[:10])
    (kept / "about.json").write_text(json.dumps({"classes": list("0123456789")}))
    return count


def own_memory_mb() -> float:
    """Memory of this process that no file backs. Mapped pages do not count: the system drops them when it needs to."""
    text = Path("/proc/self/status").read_text()
    _, _, after_name = text.partition("RssAnon:")
    return int(after_name.split()[0]) / 1024


class PeakMemory(threading.Thread):
    """Watches this process; `mb`: the highest memory so far beyond that at the start."""

    def __init__(self):
        super().__init__(daemon=True)
        self.before = own_memory_mb()
        self.mb = 0.0
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.05):
            self.mb = max(self.mb, own_memory_mb() - self.before)


def measure(kept: Path, where: str, queue) -> None:
    """Puts into `queue` the seconds of an epoch from a cold disk, and the peak memory in MB."""
    with open(kept / "train_images.npy") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # so that nothing of it is in memory
    peak = PeakMemory()
    peak.start()
    data = map_squares(kept)
    if where == "memory":
        tensors = {name: getattr(data, name).contiguous().clone() for name in SPLITS}
        data = replace(data, mapped=False, **tensors)
    config = TrainConfig(epochs=1, batch_size=64, image_size=32)
    start = time.perf_counter()
    train(MobileNetV3Large(), data, config, device="cpu", progress=False)
    seconds = time.perf_counter() - start
    peak.ended.set()
    queue.put((seconds, peak.mb))


@pytest.mark.parametrize("gigabytes, where", [(1, "memory"), (1, "disk"), (10, "disk")])
def test_an_epoch_of_large_data(gigabytes, where, benchmark, record, tmp_path):
    kept = tmp_path / "large"
    count = write_random_images(kept, gigabytes)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    results = []

    def run_epoch():
        process = context.Process(target=measure, args=(kept, where, queue))
        process.start()
        results.append(queue.get(timeout=3600))
        process.join()

    benchmark.pedantic(run_epoch, rounds=1)
    ((seconds, memory_mb),) = results
    record(
        "large_data",
        gigabytes=gigabytes,
        images=count,
        where=WHERE[where],
        images_per_second=round(count / seconds),
        memory_mb=round(memory_mb),
        batch=64,
        image_size=32,
    )

"""Data sets of 1 and 10 GB that stay on the disk: speed and memory of training; each point in its own process."""

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
from mnv3nb.data.photos import map_images

SIDE = 224
WHERE = {"disk": "memory-mapped, read ahead", "memory": "a tensor, as other data sets"}


def write_random_images(path: Path, gigabytes: float) -> int:
    """Write an .npz file of random pixels in the layout that `map_images` reads; returns the number of images."""
    count = round(gigabytes * 1e9 / (3 * SIDE * SIDE))
    raw = path.with_suffix(".raw")
    images = np.memmap(raw, np.uint8, "w+", shape=(count, SIDE, SIDE, 3))
    rng = np.random.default_rng(0)
    for start in range(0, count, 500):
        part = images[start : start + 500]
        part[:] = np.frombuffer(rng.bytes(part.size), np.uint8).reshape(part.shape)
    labels = np.arange(count) % 10
    np.savez(
        path,
        classes=np.array(list("0123456789")),
        train_images=images,
        train_labels=labels,
        test_images=images[:10],
        test_labels=labels[:10],
    )
    raw.unlink()
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


def measure(path: Path, where: str, queue) -> None:
    """Puts into `queue` the seconds of an epoch from a cold disk, and the peak memory in MB."""
    with open(path) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # so that nothing of it is in memory
    peak = PeakMemory()
    peak.start()
    data = map_images(path)
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
    path = tmp_path / "large.npz"
    count = write_random_images(path, gigabytes)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    results = []

    def run_epoch():
        process = context.Process(target=measure, args=(path, where, queue))
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

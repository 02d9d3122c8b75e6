"""Data sets of 1 and 10 GB that stay on the disk: the loop's speed and memory; each point in a process of its own."""

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


def write(kept: Path, gigabytes: float) -> int:
    """Random pixels as `keep_squares` leaves them; returns the number of images."""
    count = round(gigabytes * 1e9 / (3 * SIDE * SIDE))
    rng = np.random.default_rng(0)
    kept.mkdir()
    images = np.lib.format.open_memmap(kept / "train_images.npy", "w+", np.uint8, (count, SIDE, SIDE, 3))
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


def own_memory() -> float:
    """MB of this process that no file can give back: the system drops mapped pages when it needs the memory."""
    text = Path("/proc/self/status").read_text()
    return int(text.partition("RssAnon:")[2].split()[0]) / 1024


def measure(kept: Path, where: str, queue) -> None:
    """Puts into `queue` the seconds of an epoch from a cold disk and the highest memory beyond the start's."""
    with open(kept / "train_images.npy") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    before, peak, ended = own_memory(), [0.0], threading.Event()

    def watch():
        while not ended.wait(0.05):
            peak[0] = max(peak[0], own_memory() - before)

    threading.Thread(target=watch, daemon=True).start()
    data = map_squares(kept)
    if where == "memory":
        data = replace(data, mapped=False, **{name: getattr(data, name).contiguous().clone() for name in SPLITS})
    start = time.perf_counter()
    train(MobileNetV3Large(), data, TrainConfig(epochs=1, batch_size=64, image_size=32), device="cpu", progress=False)
    ended.set()
    queue.put((time.perf_counter() - start, peak[0]))


@pytest.mark.parametrize("gigabytes, where", [(1, "memory"), (1, "disk"), (10, "disk")])
def test_an_epoch_of_large_data(gigabytes, where, benchmark, record, tmp_path):
    context = multiprocessing.get_context("spawn")
    count, points = write(tmp_path / "large", gigabytes), []

    def epoch():
        queue = context.Queue()
        process = context.Process(target=measure, args=(tmp_path / "large", where, queue))
        process.start()
        points.append(queue.get(timeout=3600))
        process.join()

    benchmark.pedantic(epoch, rounds=1)
    ((seconds, memory),) = points
    speed = {"images_per_second": round(count / seconds), "memory_mb": round(memory)}
    record("large_data", gigabytes=gigabytes, images=count, where=WHERE[where], **speed, batch=64, image_size=32)

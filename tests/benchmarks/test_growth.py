"""How time and memory grow with images, image size, width and number of runs; each point in its own process."""

import multiprocessing
import resource
import time

import numpy as np
import pytest
import torch

from mnv3nb import DENSE_WIDTHS, Dataset, MobileNetV3Large, TrainConfig, train
from mnv3nb.model import make_divisible

BASE = {"images": 512, "image_size": 32, "width": 1.0, "runs": 1}
AXES = {
    "images": (512, 1024, 2048, 4096),
    "image_size": (32, 64, 128),
    "width": (0.125, 0.25, 0.5, 1.0),
    "runs": (1, 2, 4),
}
WHY = {
    "images": "each is read once per epoch and takes 3 kB of memory",
    "image_size": (
        "pixels grow with its square; at 32 px the fixed cost of some 500 small operations per step hides part of it"
    ),
    "width": "1×1 convolutions grow linearly with it, stem and head not at all; small layers have a fixed cost",
    "runs": "runs follow one another; each frees its memory when it ends",
}


def measure(images: int, image_size: int, width: float, runs: int, queue) -> None:
    """Puts into `queue` the seconds of `runs` epochs and the peak memory in MB beyond the imported packages."""
    torch.set_num_threads(1)
    pixels = torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8)
    labels = torch.randint(0, 10, (images,))
    kilobytes_before = peak_kilobytes()
    dataset = Dataset(pixels, labels, pixels[:2], labels[:2], tuple("0123456789"))
    config = TrainConfig(epochs=1, batch_size=32, image_size=image_size)
    widths = [make_divisible(dense_width * width) for dense_width in DENSE_WIDTHS]
    seconds = 0.0
    for _ in range(runs):
        start = time.perf_counter()
        train(MobileNetV3Large(widths=widths), dataset, config, device="cpu", progress=False)
        seconds += time.perf_counter() - start
    queue.put((seconds, (peak_kilobytes() - kilobytes_before) / 1024))


def peak_kilobytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def growth_exponent(values, measured) -> float:
    """p in measured ~ values^p: the slope of a line through the logarithms."""
    slope, _ = np.polyfit(np.log(values), np.log(measured), 1)
    return slope.round(2)


@pytest.mark.parametrize("axis", AXES)
def test_growth(axis, benchmark, record):
    context = multiprocessing.get_context("spawn")
    seconds = []
    memory_mb = []

    def measure_all_points():
        for value in AXES[axis]:
            queue = context.Queue()
            process = context.Process(target=measure, kwargs=BASE | {axis: value, "queue": queue})
            process.start()
            point_seconds, point_mb = queue.get(timeout=600)
            process.join()
            seconds.append(point_seconds)
            memory_mb.append(point_mb)

    benchmark.pedantic(measure_all_points, rounds=1)
    record(
        "growth",
        axis=axis,
        values=" ".join(str(value) for value in AXES[axis]),
        seconds=" ".join(f"{s:.2f}" for s in seconds),
        memory_mb=" ".join(f"{mb:.0f}" for mb in memory_mb),
        time_exponent=growth_exponent(AXES[axis], seconds),
        memory_exponent=growth_exponent(AXES[axis], memory_mb),
        why=WHY[axis],
        threads=1,
    )

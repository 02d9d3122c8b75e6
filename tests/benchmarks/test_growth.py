"""How time and memory grow with images, image size, width and number of runs; each point in a process of its own."""

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
    "image_size": "pixels grow with its square; at 32 px the fixed cost of some 500 small operations per step hides part of it",
    "width": "1×1 convolutions grow linearly with it, stem and head not at all; small layers have a fixed cost",
    "runs": "runs follow one another; each frees its memory when it ends",
}


def measure(images: int, image_size: int, width: float, runs: int, queue) -> None:
    """Puts into `queue` the seconds of `runs` epochs of training and the peak memory in MB beyond the imported packages'."""
    torch.set_num_threads(1)
    pixels = torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8)
    labels = torch.randint(0, 10, (images,))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    dataset = Dataset(pixels, labels, pixels[:2], labels[:2], tuple("0123456789"))
    widths = [make_divisible(w * width) for w in DENSE_WIDTHS]
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        config = TrainConfig(epochs=1, batch_size=32, image_size=image_size)
        train(MobileNetV3Large(widths=widths), dataset, config, device="cpu", progress=False)
        times.append(time.perf_counter() - start)
    queue.put((sum(times), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024))


@pytest.mark.parametrize("axis", AXES)
def test_growth(axis, benchmark, record):
    context, points = multiprocessing.get_context("spawn"), []

    def all_points():
        for value in AXES[axis]:
            queue = context.Queue()
            process = context.Process(target=measure, kwargs=BASE | {axis: value, "queue": queue})
            process.start()
            points.append(queue.get(timeout=600))
            process.join()

    benchmark.pedantic(all_points, rounds=1)
    x, seconds, memory = np.log(AXES[axis]), *np.log(np.array(points).T)
    record(
        "growth",
        axis=axis,
        values=" ".join(map(str, AXES[axis])),
        seconds=" ".join(f"{s:.2f}" for s, _ in points),
        memory_mb=" ".join(f"{m:.0f}" for _, m in points),
        time_exponent=np.polyfit(x, seconds, 1)[0].round(2),
        memory_exponent=np.polyfit(x, memory, 1)[0].round(2),
        why=WHY[axis],
        threads=1,
    )

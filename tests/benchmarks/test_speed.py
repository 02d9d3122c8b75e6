"""Our loops beside a plain loop as one would write it first, in the same process, turn by turn."""

import contextlib
import copy
import gc
import os
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch_pruning
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision import transforms

from mnv3nb import Dataset, MobileNetV3Large, TrainConfig, evaluate, keep_masks, prune, score, train

IMAGES, BATCH, ROUNDS = 1024, 64, 15
PLAIN = "torchvision's transforms, DataLoader with 2 workers, fp32, NCHW"


class Photos(TorchDataset):
    """Images as torchvision's CIFAR10 holds and gives them: a numpy array, one PIL image at a time, then transforms."""

    def __init__(self, dataset: Dataset, transform):
        self.images = dataset.train_images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = dataset.train_labels.tolist()
        self.transform = transform

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


@pytest.fixture(scope="module")
def photos() -> Dataset:
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (IMAGES, 3, 32, 32), generator=g, dtype=torch.uint8)
    labels = torch.randint(0, 10, (IMAGES,), generator=g)
    return Dataset(images, labels, images[:2], labels[:2], tuple("0123456789"))


def side_by_side(benchmark, ours, other, rounds: int = ROUNDS) -> dict:
    """Times `other` before each round of `ours`; medians in seconds, and their ratio with its quartiles."""
    times = []

    def setup():
        start = time.perf_counter()
        other()
        times.append(time.perf_counter() - start)
        gc.collect()  # else what the other leaves behind is cleared away in our time

    benchmark.pedantic(ours, setup=setup, rounds=rounds, warmup_rounds=1)
    mine, theirs = np.array(benchmark.stats.stats.data), np.array(times[-rounds:])
    low, ratio, high = np.quantile(theirs / mine, [0.25, 0.5, 0.75]).round(2)
    return {
        "ours_s": np.median(mine).round(4),
        "other_s": np.median(theirs).round(4),
        "times_as_fast": ratio,
        "low": low,
        "high": high,
    }


def test_training_against_a_plain_loop(benchmark, photos, record):
    normalize = [transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)]
    augment = [transforms.RandomCrop(32, 4), transforms.RandomHorizontalFlip()]
    training = Photos(photos, transforms.Compose(augment + normalize))
    loader = DataLoader(training, BATCH, shuffle=True, num_workers=2, persistent_workers=True)
    model, mine = MobileNetV3Large(), MobileNetV3Large()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def plain():
        model.train()
        for x, y in loader:
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    config = TrainConfig(epochs=1, batch_size=BATCH, image_size=32, augment="crop_flip")
    result = side_by_side(benchmark, lambda: train(mine, photos, config, device="cpu", progress=False), plain)
    record("speed", what="training, 32 px, batch 64", against=PLAIN, **result)


@pytest.mark.parametrize("threads", sorted({1, os.cpu_count() or 1}))
def test_training_with_small_maps_against_onednn_alone(benchmark, photos, record, monkeypatch, threads):
    torch.set_num_threads(threads)
    config = TrainConfig(epochs=1, batch_size=BATCH, image_size=32)
    mine, other = MobileNetV3Large(), MobileNetV3Large()

    def without():
        with monkeypatch.context() as patch:
            patch.setattr("mnv3nb.system.device.SmallMaps", contextlib.nullcontext)
            train(other, photos, config, device="cpu", progress=False)

    result = side_by_side(benchmark, lambda: train(mine, photos, config, device="cpu", progress=False), without)
    what = f"training, 32 px, batch 64, {threads} thread{'s' * (threads > 1)}"
    record("speed", what=what, against="the same loop without _small_maps.py", **result)


def test_where_a_step_spends_its_time(photos, record):
    """Shares of a training step by operation, on the GPU if there is one."""
    config, model = TrainConfig(epochs=1, batch_size=BATCH, image_size=32), MobileNetV3Large()
    train(model, photos, config, progress=False)
    with torch.profiler.profile() as profile:
        train(model, photos, config, progress=False)
    events, on_gpu = profile.key_averages(), next(model.parameters()).is_cuda
    times = {e.key: e.self_device_time_total if on_gpu else e.self_cpu_time_total for e in events}
    calls = {e.key: e.count / (IMAGES // BATCH) for e in events}
    for name in sorted(times, key=times.get, reverse=True)[:12]:
        share = 100 * times[name] / sum(times.values())
        record("step", operation=name, share_pct=round(share, 1), calls_per_step=round(calls[name], 1))


def test_evaluation_against_a_plain_loop(benchmark, photos, record):
    plain_images = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)])
    loader = DataLoader(Photos(photos, plain_images), BATCH, num_workers=2, persistent_workers=True)
    model, mine = MobileNetV3Large(), MobileNetV3Large()

    def plain():
        model.eval()
        correct = 0
        with torch.no_grad():
            for x, y in loader:
                correct += (model(x).argmax(1) == y).sum().item()

    result = side_by_side(benchmark, lambda: evaluate(mine, photos.train_images, photos.train_labels, 32), plain)
    record("speed", what="evaluation, 32 px", against=PLAIN, **result)


def test_scoring_and_pruning_against_torch_pruning(benchmark, record):
    model, x = MobileNetV3Large().eval(), torch.zeros(1, 3, 224, 224)

    def other():
        tree = copy.deepcopy(model)
        importance = torch_pruning.importance.BNScaleImportance()
        ignored = [tree.classifier[-1]]
        torch_pruning.pruner.BNScalePruner(tree, x, importance, pruning_ratio=0.5, ignored_layers=ignored).step()

    result = side_by_side(benchmark, lambda: prune(model, keep_masks(score(model), 0.5)), other, rounds=15)
    what = "score, and prune half of the dense network"
    record("speed", what=what, against="Torch-Pruning: build and step", **result)

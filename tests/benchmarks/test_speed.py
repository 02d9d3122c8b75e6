"""Our loops beside the plain loop that one would write first: in one process, taking turns."""

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

IMAGES = 1024
BATCH = 64
ROUNDS = 15
PLAIN = "torchvision's transforms, DataLoader with 2 workers, fp32, NCHW"


class Photos(TorchDataset):
    """Images as torchvision's CIFAR10 holds them: a numpy array, from which PIL images are made one at a time."""

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
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (IMAGES, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 10, (IMAGES,), generator=generator)
    return Dataset(images, labels, images[:2], labels[:2], tuple("0123456789"))


def side_by_side(benchmark, ours, other) -> dict:
    """Times `other` before each round of `ours`; medians in seconds, and the median ratio with its quartiles."""
    other_times = []

    def time_other():
        start = time.perf_counter()
        other()
        other_times.append(time.perf_counter() - start)
        gc.collect()  # otherwise what `other` leaves behind is collected while `ours` is timed

    benchmark.pedantic(ours, setup=time_other, rounds=ROUNDS, warmup_rounds=1)
    ours_s = np.array(benchmark.stats.stats.data)
    other_s = np.array(other_times[-ROUNDS:])  # without the warm-up
    low, ratio, high = np.quantile(other_s / ours_s, [0.25, 0.5, 0.75]).round(2)
    return {
        "ours_s": np.median(ours_s).round(4),
        "other_s": np.median(other_s).round(4),
        "times_as_fast": ratio,
        "low": low,
        "high": high,
    }


def test_training_against_a_plain_loop(benchmark, photos, record):
    normalize = [transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)]
    augment = [transforms.RandomCrop(32, 4), transforms.RandomHorizontalFlip()]
    training = Photos(photos, transforms.Compose(augment + normalize))
    loader = DataLoader(training, BATCH, shuffle=True, num_workers=2, persistent_workers=True)
    our_model = MobileNetV3Large()
    plain_model = MobileNetV3Large()
    optimizer = torch.optim.Adam(plain_model.parameters(), lr=1e-3)
    config = TrainConfig(epochs=1, batch_size=BATCH, image_size=32, augment="crop_flip")

    def our_loop():
        train(our_model, photos, config, device="cpu", progress=False)

    def plain_loop():
        plain_model.train()
        for x, y in loader:
            loss = F.cross_entropy(plain_model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    result = side_by_side(benchmark, our_loop, plain_loop)
    record("speed", what="training, 32 px, batch 64", against=PLAIN, **result)


@pytest.mark.parametrize("threads", sorted({1, os.cpu_count() or 1}))
def test_training_with_small_maps_against_onednn_alone(benchmark, photos, record, monkeypatch, threads):
    torch.set_num_threads(threads)
    config = TrainConfig(epochs=1, batch_size=BATCH, image_size=32)
    model_with = MobileNetV3Large()
    model_without = MobileNetV3Large()

    def with_small_maps():
        train(model_with, photos, config, device="cpu", progress=False)

    def without_small_maps():
        with monkeypatch.context() as patch:
            patch.setattr("mnv3nb.system.speed.SmallMaps", contextlib.nullcontext)
            train(model_without, photos, config, device="cpu", progress=False)

    result = side_by_side(benchmark, with_small_maps, without_small_maps)
    where = "1 thread" if threads == 1 else f"{threads} threads"
    record("speed", what=f"training, 32 px, batch 64, {where}", against="the same loop without SmallMaps", **result)


def test_where_a_step_spends_its_time(photos, record):
    """The twelve longest operations of a training step and their shares, on the GPU if there is one."""
    config = TrainConfig(epochs=1, batch_size=BATCH, image_size=32)
    model = MobileNetV3Large()
    train(model, photos, config, progress=False)
    with torch.profiler.profile() as profile:
        train(model, photos, config, progress=False)

    on_gpu = next(model.parameters()).is_cuda
    times = {}
    calls = {}
    for event in profile.key_averages():
        times[event.key] = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        calls[event.key] = event.count / (IMAGES // BATCH)
    total = sum(times.values())
    for name in sorted(times, key=times.get, reverse=True)[:12]:
        share = 100 * times[name] / total
        record("step", operation=name, share_pct=round(share, 1), calls_per_step=round(calls[name], 1))


def test_evaluation_against_a_plain_loop(benchmark, photos, record):
    plain_images = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)])
    loader = DataLoader(Photos(photos, plain_images), BATCH, num_workers=2, persistent_workers=True)
    our_model = MobileNetV3Large()
    plain_model = MobileNetV3Large()

    def our_loop():
        evaluate(our_model, photos.train_images, photos.train_labels, 32)

    def plain_loop():
        plain_model.eval()
        correct = 0
        with torch.no_grad():
            for x, y in loader:
                correct += (plain_model(x).argmax(1) == y).sum().item()

    result = side_by_side(benchmark, our_loop, plain_loop)
    record("speed", what="evaluation, 32 px", against=PLAIN, **result)


def test_scoring_and_pruning_against_torch_pruning(benchmark, record):
    model = MobileNetV3Large().eval()
    x = torch.zeros(1, 3, 224, 224)

    def score_and_prune():
        prune(model, keep_masks(score(model), 0.5))

    def prune_with_torch_pruning():
        pruned = copy.deepcopy(model)
        importance = torch_pruning.importance.BNScaleImportance()
        classifier = pruned.classifier[-1]
        pruner = torch_pruning.pruner.BNScalePruner(
            pruned, x, importance, pruning_ratio=0.5, ignored_layers=[classifier]
        )
        pruner.step()

    result = side_by_side(benchmark, score_and_prune, prune_with_torch_pruning)
    what = "score, and prune half of the dense network"
    record("speed", what=what, against="Torch-Pruning: build and step", **result)

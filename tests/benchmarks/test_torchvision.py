"""torchvision's MobileNetV3 on CIFAR-10, trained as profile cifar trains, pruned by half in multiples of 16.

The large network takes an hour on one core. Stages stay in `$MNV3NB_HOME/runs/<network>`, so the same command resumes
after the last completed epoch. Once all is trained, it only measures.
"""

from dataclasses import replace

import pytest
import torch

from mnv3nb import count_parameters, fold_bias, keep_masks, load_dataset, prune, score
from mnv3nb.data.batches import to_input
from mnv3nb.deploy.export import to_onnx
from mnv3nb.deploy.latency import interleaved, onnx_runner, ratios
from mnv3nb.deploy.template import fused
from mnv3nb.networks.zoo import build_network
from mnv3nb.report.statistics import paired_images
from mnv3nb.runs.profiles import get_profile
from mnv3nb.slim.job import Job
from mnv3nb.slim.stages import train_stage

RATE = 0.5
MULTIPLE_OF = 16
ROUNDS = 51


@torch.no_grad()
def correct_images(model, data, image_size) -> torch.Tensor:
    """For each test image, whether `model` classifies it correctly."""
    model.eval()
    labels = [model(to_input(images, image_size)).argmax(1) for images in data.test_images.split(500)]
    return torch.cat(labels) == data.test_labels


def percent(correct: torch.Tensor) -> float:
    return 100 * correct.float().mean().item()


def latency_ratio(networks: dict, image_size: int) -> dict:
    """Latency of "pruned" divided by that of "dense", with quartiles; the image size is part of the names."""
    runners = {name: onnx_runner(to_onnx(fused(network), image_size)) for name, network in networks.items()}
    times = interleaved(runners, ROUNDS, least_ms=50)  # at 64 px a call lasts less than 1 ms: short turns would scatter
    row = ratios(times).loc["pruned"]
    return {f"{column}_{image_size}px": row[column] for column in ("ratio", "ratio_low", "ratio_high")}


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "mobilenet_v3_large"])
def test_half_of_a_torchvision_network(name, record, kept_home):
    torch.set_num_threads(1)
    profile = get_profile("cifar")
    data = load_dataset("cifar10")
    size = profile.sparse.image_size
    job = Job(f"torchvision/{name}", "cifar10", str(kept_home / "runs" / name))
    torch.manual_seed(job.seed)
    start = build_network(job.network, len(data.classes))
    sparse = train_stage(job, "sparse", start, data, replace(profile.sparse, lam=profile.lam))

    scores = score(sparse, "gamma_sparsity")
    networks = {}
    for label, rate in (("dense", 0.0), ("pruned", RATE)):  # both are fine-tuned, for a fair comparison
        masks = keep_masks(scores, rate, MULTIPLE_OF)
        small = fold_bias(sparse, prune(sparse, masks), masks, size)
        networks[label] = train_stage(job, label, small, data, profile.finetune)

    dense_correct = correct_images(networks["dense"], data, size)
    pruned_correct = correct_images(networks["pruned"], data, size)
    difference = paired_images(pruned_correct, dense_correct)
    measured = {
        "sparse_pct": percent(correct_images(sparse, data, size)),
        "dense_pct": percent(dense_correct),
        "pruned_pct": percent(pruned_correct),
        "difference": difference.mean,
        "difference_low": difference.low,
        "difference_high": difference.high,
        "dense_parameters": count_parameters(networks["dense"]),
        "pruned_parameters": count_parameters(networks["pruned"]),
        **latency_ratio(networks, size),
        **latency_ratio(networks, 224),
    }
    record(
        "torchvision",
        network=job.network,
        **{column: round(value, 4) for column, value in measured.items()},
        rate=RATE,
        multiple_of=MULTIPLE_OF,
        epochs=profile.sparse.epochs,
        finetuning=profile.finetune.epochs,
        image_size=size,
    )

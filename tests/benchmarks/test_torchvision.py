"""torchvision's own MobileNetV3 on CIFAR-10, trained as profile cifar trains: half of the filters, in widths to 16.

An hour on one core for the large network. Stages stay in `$MNV3NB_HOME/runs/<network>`: the same command resumes after
the last epoch, and measures again once all is trained.
"""

from dataclasses import replace

import pytest
import torch

from mnv3nb import count_parameters, fold_bias, keep_masks, load_dataset, prune, score
from mnv3nb.data.batches import to_input
from mnv3nb.deploy.export import to_onnx
from mnv3nb.deploy.latency import fused, interleaved, onnx_runner, ratios
from mnv3nb.networks.zoo import build_network
from mnv3nb.report.statistics import paired_images
from mnv3nb.runs.profiles import get_profile
from mnv3nb.slim.job import Job
from mnv3nb.slim.stages import trained

RATE, MULTIPLE_OF, ROUNDS = 0.5, 16, 51


@torch.no_grad()
def hits(model, data, size) -> torch.Tensor:
    model.eval()
    guesses = [model(to_input(part, size)).argmax(1) for part in data.test_images.split(500)]
    return torch.cat(guesses) == data.test_labels


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "mobilenet_v3_large"])
def test_half_of_a_torchvision_network(name, record, kept_home):
    torch.set_num_threads(1)
    profile, data = get_profile("cifar"), load_dataset("cifar10")
    size, job = profile.sparse.image_size, Job(f"torchvision/{name}", "cifar10", str(kept_home / "runs" / name))
    torch.manual_seed(job.seed)
    start = build_network(job.network, len(data.classes))
    sparse = trained(job, "sparse", start, data, replace(profile.sparse, lam=profile.lam))
    scores, networks = score(sparse, "gamma_sparsity"), {}
    for label, rate in (("dense", 0.0), ("pruned", RATE)):  # fine-tuned alike
        masks = keep_masks(scores, rate, MULTIPLE_OF)
        small = fold_bias(sparse, prune(sparse, masks), masks, size)
        networks[label] = trained(job, label, small, data, profile.finetune)
    right = {label: hits(network, data, size) for label, network in networks.items()}
    lost = paired_images(right["pruned"], right["dense"])
    row = {"network": job.network, "sparse_pct": 100 * hits(sparse, data, size).float().mean().item()}
    row |= {f"{label}_pct": 100 * hit.float().mean().item() for label, hit in right.items()}
    row |= {"difference": lost.mean, "difference_low": lost.low, "difference_high": lost.high}
    row |= {f"{label}_parameters": count_parameters(network) for label, network in networks.items()}
    for px in (size, 224):  # at 64 px a call lasts a fraction of a millisecond: short turns would scatter
        runners = {label: onnx_runner(to_onnx(fused(network), px)) for label, network in networks.items()}
        latency = ratios(interleaved(runners, ROUNDS, least_ms=50)).loc["pruned"].drop("ms")
        row |= latency.add_suffix(f"_{px}px").to_dict()
    record(
        "torchvision",
        **{k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()},
        rate=RATE,
        multiple_of=MULTIPLE_OF,
        epochs=profile.sparse.epochs,
        finetuning=profile.finetune.epochs,
        image_size=size,
    )

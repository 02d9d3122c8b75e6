"""Networks and images for the exercises: random networks, and a small one that trains in seconds."""

import copy
import functools
from collections.abc import Callable

import pandas as pd
import torch
from torch import Tensor, nn
from torchvision.ops.misc import Conv2dNormActivation

import mnv3nb
from mnv3nb.blocks import batch_norms
from mnv3nb.deploy.widths import current_costs
from mnv3nb.importance import NEEDS_DATA, Expansion
from mnv3nb.model import InvertedResidual, MobileNetV3Large

IMAGE_SIZE = 8  # pixels, of the digits and of the small network's input
RATE = 0.6  # at which criteria are compared: a little more than the share of dead filters
# one filter per row; the task my_shares asks for S of both
TWO_FILTERS = torch.tensor([[6.0, 2.0, -1.0], [-2.0, 1.0, 0.0]])


def lively_network(seed: int = 0) -> MobileNetV3Large:
    """MobileNetV3-Large with random weights and, as if trained, random γ, β, means and variances."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = MobileNetV3Large().eval()
        shake(model)
    return model


def small_network(seed: int = 0) -> nn.Sequential:
    """Three blocks, the second with squeeze-and-excitation, for 8×8 images of 10 classes. γ starts at 0.5."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            Conv2dNormActivation(3, 16, 3, activation_layer=nn.Hardswish),
            InvertedResidual(16, (3, 48, 16, False, "RE", 1), 48, 0),
            InvertedResidual(16, (3, 64, 24, True, "HS", 2), 64, 16),
            InvertedResidual(24, (3, 96, 24, False, "HS", 1), 96, 0),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(24, 10),
        )
    for bn in batch_norms(model):
        nn.init.constant_(bn.weight, 0.5)
    return model


@functools.cache
def digits() -> mnv3nb.Dataset:
    """Handwritten digits. 400 training images replace the test images, because a choice must not use those."""
    return mnv3nb.load_dataset("digits").subset(holdout=400)


@functools.cache
def sparse_network() -> nn.Sequential:
    """The small network after 8 epochs of sparse training on digits: about half of its γ are dead. Do not change it."""
    model = small_network()
    config = mnv3nb.TrainConfig(epochs=8, batch_size=32, image_size=IMAGE_SIZE, lr=1e-2, lam=1e-2)
    mnv3nb.train(model, digits(), config, device="cpu", progress=False)
    return model.eval()


def expansions_of(model: nn.Module) -> list[Expansion]:
    """What a criterion sees of each block."""
    expansions = []
    for block in mnv3nb.blocks(model):
        bn = block.expand_bn
        expansions.append(Expansion(block.expand.weight.detach(), bn.weight.detach(), bn.bias.detach()))
    return expansions


def criterion_accuracies(scores: list[Tensor]) -> dict[str, float]:
    """Accuracy on held-out images of the sparse-trained small network, cut by `scores`: raw, and folded."""
    model = sparse_network()
    masks = mnv3nb.keep_masks(scores, RATE)
    raw = mnv3nb.prune(model, masks)
    folded = mnv3nb.fold_bias(model, raw, masks, IMAGE_SIZE)
    return {"raw_pct": _accuracy(raw), "folded_pct": _accuracy(folded)}


def _accuracy(model: nn.Module) -> float:
    """Accuracy in % on held-out images."""
    return 100 * mnv3nb.evaluate(model, digits().test_images, digits().test_labels, IMAGE_SIZE)


def random_criteria(count: int = 3) -> list[list[Tensor]]:
    """Random scores: every criterion has to be better than these."""
    return [mnv3nb.score(sparse_network(), "random", seed=seed) for seed in range(count)]


def comparison(criterion: Callable | None = None) -> pd.DataFrame:
    """`criterion_accuracies` of the criteria of `mnv3nb`, of random scores and of yours, best first."""
    model = sparse_network()
    scores = {}
    for name in mnv3nb.CRITERIA:
        if name not in NEEDS_DATA and name != "random":
            scores[name] = mnv3nb.score(model, name)
    for number, random_scores in enumerate(random_criteria(), start=1):
        scores[f"random {number}"] = random_scores
    if criterion is not None:
        yours = [criterion(expansion) for expansion in expansions_of(model)]
        if all(isinstance(score, Tensor) for score in yours):  # an unsolved task returns None
            scores["yours"] = yours
    rows = {name: criterion_accuracies(of_criterion) for name, of_criterion in scores.items()}
    table = pd.DataFrame.from_dict(rows, orient="index")
    return table.sort_values("folded_pct", ascending=False).round(1)


def random_block(width: int = 24, seed: int = 0) -> mnv3nb.Block:
    """A block with random γ, β and statistics: 16 -> `width` -> 24 channels, ReLU6, no squeeze-and-excitation."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        module = InvertedResidual(16, (3, width, 24, False, "RE", 1), width, 0).eval()
        shake(module)
    return mnv3nb.blocks(module)[0]


def copied(block: mnv3nb.Block) -> mnv3nb.Block:
    """The same block with layers of its own."""
    return mnv3nb.blocks(copy.deepcopy(block.module))[0]


@torch.no_grad()
def shake(model: nn.Module) -> None:
    """Give every BatchNorm random γ, β, mean and variance, in place."""
    for bn in batch_norms(model):
        bn.weight.normal_()
        bn.bias.normal_(std=0.5)
        bn.running_mean.normal_(std=0.2)
        bn.running_var.uniform_(0.5, 1.5)


@functools.cache
def dense_costs() -> list[dict]:
    """The layers of the paper's dense network, see `mnv3nb.layer_costs`."""
    return mnv3nb.layer_costs(MobileNetV3Large())


@functools.cache
def block_flops(widths: tuple[int, ...]) -> list[int]:
    """FLOPs of each block of the paper's network at these widths."""
    return current_costs(MobileNetV3Large(widths=widths), "flops")


def random_scores(widths: tuple[int, ...] = (12, 30, 48, 20), seed: int = 0) -> list[Tensor]:
    """Distinct scores of layers that differ in scale, as m of real layers does."""
    generator = torch.Generator().manual_seed(seed)
    scores = []
    for i, width in enumerate(widths):
        scale = 1 + i / 2 / len(widths)
        scores.append(scale * torch.rand(width, generator=generator))
    return scores

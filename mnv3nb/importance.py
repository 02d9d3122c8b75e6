"""How much each filter of the 15 expansion convolutions matters: the paper's m = |γ|·S and what it is compared with."""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .data import lookup, to_input
from .model import MobileNetV3Large


@dataclass(frozen=True)
class Expansion:
    """What a criterion sees of one unit's 1×1 expansion with N filters and its BatchNorm.

    weight (N, C, 1, 1); gamma, beta (N,); the loss's gradients of both, (N,), for criteria in NEEDS_DATA.
    """

    weight: Tensor
    gamma: Tensor
    beta: Tensor
    gamma_grad: Tensor | None = None
    beta_grad: Tensor | None = None
    generator: torch.Generator | None = None


def filter_sparsity(weight: Tensor) -> Tensor:
    """S of every filter of a convolution (Eq. 3-4).

    `weight` is (N, C, H, W); the result (N,), in [0, 1]: the share of a filter's weights whose magnitude reaches the
    layer's mean magnitude. Near 0 = redundant.
    """
    magnitude = weight.abs()
    return (magnitude >= magnitude.mean()).float().mean(dim=(1, 2, 3))


def gamma_sparsity(e: Expansion) -> Tensor:
    """m = |γ|·S, the paper's importance (Eq. 5)."""
    return e.gamma.abs() * filter_sparsity(e.weight)


def gamma(e: Expansion) -> Tensor:
    """|γ|: network slimming (Liu et al. 2017)."""
    return e.gamma.abs()


def sparsity(e: Expansion) -> Tensor:
    """S alone (Liu & Wu)."""
    return filter_sparsity(e.weight)


def l1(e: Expansion) -> Tensor:
    """Sum of the filter's absolute weights (Li et al. 2017)."""
    return e.weight.abs().sum(dim=(1, 2, 3))


def l1_gamma(e: Expansion) -> Tensor:
    """L1 norm times |γ| (Wei et al.)."""
    return l1(e) * e.gamma.abs()


def l2(e: Expansion) -> Tensor:
    """Euclidean norm of the filter's weights."""
    return e.weight.square().sum(dim=(1, 2, 3)).sqrt()


def fpgm(e: Expansion) -> Tensor:
    """Sum of distances to the layer's other filters: small near the geometric median (He et al. 2019)."""
    flat = e.weight.flatten(1)
    return torch.cdist(flat, flat).sum(dim=1)


def taylor(e: Expansion) -> Tensor:
    """|γ·∂L/∂γ + β·∂L/∂β|: first-order change of the loss L if the channel goes (Molchanov et al. 2019)."""
    return (e.gamma * e.gamma_grad + e.beta * e.beta_grad).abs()


def random(e: Expansion) -> Tensor:
    """Uniform noise in [0, 1): the yardstick that every criterion must beat."""
    return torch.rand(len(e.gamma), generator=e.generator)


CRITERIA: dict[str, Callable[[Expansion], Tensor]] = {
    f.__name__: f for f in (gamma_sparsity, gamma, sparsity, l1, l1_gamma, random, l2, fpgm, taylor)
}
NEEDS_DATA = ("taylor",)
RANKINGS = ("global", "layer")


def score(
    model: MobileNetV3Large,
    criterion: str = "gamma_sparsity",
    batches: Iterable[tuple[Tensor, Tensor]] | None = None,
    seed: int = 0,
) -> list[Tensor]:
    """Importance of every filter: 15 tensors (width,) on the CPU, larger = more important; the model is untouched.

    `criterion`: a name in CRITERIA. `batches` of (images as the network takes them, or uint8 at its size; labels): only for
    "taylor", gradients are averaged over them. `seed`: only for "random". Raises ValueError for an unknown criterion,
    missing batches, or a score that is not finite.
    """
    function = lookup(CRITERIA, criterion, "criterion")
    grads = {}
    if criterion in NEEDS_DATA:
        if batches is None:
            raise ValueError(f"criterion {criterion!r} needs gradients: give batches=[(images, labels), ...]")
        model, grads = _gradients(model, batches)
    generator = torch.Generator().manual_seed(seed)
    scores = []
    for i, unit in enumerate(model.blocks):
        weight, bn = unit.expand[0].weight.detach().cpu(), unit.expand[1]
        expansion = Expansion(weight, bn.weight.detach().cpu(), bn.bias.detach().cpu(), *grads.get(i, (None, None)), generator)
        scores.append(function(expansion))
        if not scores[-1].isfinite().all():
            raise ValueError(f"criterion {criterion!r} gives scores that are not finite in unit {i}: has the training diverged?")
    return scores


def rank_within_layers(scores: Sequence[Tensor]) -> list[Tensor]:
    """Each score's rank within its layer, in [0, 1): one threshold for all layers then cuts the same share of each."""
    return [s.argsort(stable=True).argsort().double() / len(s) for s in scores]


def _gradients(model: MobileNetV3Large, batches: Iterable[tuple[Tensor, Tensor]]):
    model = copy.deepcopy(model).eval()
    model.zero_grad()
    device = next(model.parameters()).device
    count = 0
    for images, labels in batches:
        x = to_input(images, images.shape[-1]) if images.dtype == torch.uint8 else images
        F.cross_entropy(model(x.to(device)), labels.to(device)).backward()
        count += 1
    if not count:
        raise ValueError("batches is empty: give at least one (images, labels)")
    layers = [unit.expand[1] for unit in model.blocks]
    return model, {i: (bn.weight.grad.cpu() / count, bn.bias.grad.cpu() / count) for i, bn in enumerate(layers)}

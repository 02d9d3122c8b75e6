"""How much each filter of the expansion convolutions matters: the paper's m = |γ|·S and what it is compared with."""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import blocks
from .data.batches import to_input
from .system.files import lookup


@dataclass(frozen=True)
class Expansion:
    """What a criterion sees of one block's 1×1 expansion with N filters and its BatchNorm.

    weight (N, C, 1, 1); gamma, beta (N,); the loss's gradients of both, (N,), for criteria in NEEDS_DATA.
    """

    weight: Tensor
    gamma: Tensor
    beta: Tensor
    gamma_grad: Tensor | None = None
    beta_grad: Tensor | None = None
    generator: torch.Generator | None = None


def filter_sparsity(weight: Tensor) -> Tensor:
    """S of every filter of a convolution (Eq. 3-4); the paper calls it sparsity, though it is a density.

    `weight`: (N, C, H, W); result: (N,), in [0, 1], the share of a filter's weights whose magnitude reaches the layer's
    mean magnitude. Near 0 = redundant.
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


def random(e: Expansion) -> Tensor:
    """Uniform noise in [0, 1): the yardstick that every criterion must beat."""
    return torch.rand(len(e.gamma), generator=e.generator)


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


CRITERIA: dict[str, Callable[[Expansion], Tensor]] = {
    f.__name__: f for f in (gamma_sparsity, gamma, sparsity, l1, l1_gamma, random, l2, fpgm, taylor)
}
NEEDS_DATA = ("taylor",)
RANKINGS = ("global", "layer")
Batches = Iterable[tuple[Tensor, Tensor]] | None


def score(model: nn.Module, criterion: str = "gamma_sparsity", batches: Batches = None, seed: int = 0) -> list[Tensor]:
    """Importance of every expansion filter: one tensor (width,) per block, on the CPU; larger = more important.

    `criterion`: a name in CRITERIA. `batches` of (images as the network takes them, or uint8 at its size; labels): only
    for "taylor", gradients are averaged over them. `seed`: only for "random". The model is untouched. Raises ValueError
    for an unknown criterion, missing batches, a network without blocks, or a score that is not finite.
    """
    function, every, needs_data = lookup(CRITERIA, criterion, "criterion"), blocks(model), criterion in NEEDS_DATA
    if needs_data and batches is None:
        raise ValueError(f"criterion {criterion!r} needs gradients: give batches=[(images, labels), ...]")
    grads = _gradients(model, batches) if needs_data else [(None, None)] * len(every)
    scores, generator = [], torch.Generator().manual_seed(seed)
    for block, (gamma_grad, beta_grad) in zip(every, grads):
        tensors = (block.expand.weight, block.expand_bn.weight, block.expand_bn.bias)
        expansion = Expansion(*(t.detach().cpu() for t in tensors), gamma_grad, beta_grad, generator)
        scores.append(function(expansion))
        if not scores[-1].isfinite().all():
            raise ValueError(f"{criterion!r} gives scores that are not finite in {block.name}: has training diverged?")
    return scores


def rank_within_layers(scores: Sequence[Tensor]) -> list[Tensor]:
    """Each score's rank within its layer, in [0, 1): one threshold for all layers then cuts the same share of each."""
    return [s.argsort(stable=True).argsort().double() / len(s) for s in scores]


def _gradients(model: nn.Module, batches: Batches) -> list[tuple[Tensor, Tensor]]:
    """Mean gradients of γ and β of each expansion's BatchNorm."""
    model = copy.deepcopy(model).eval().requires_grad_(True)
    model.zero_grad()
    device, count = next(model.parameters()).device, 0
    for images, labels in batches:
        x = to_input(images, images.shape[-1]) if images.dtype == torch.uint8 else images
        F.cross_entropy(model(x.to(device)), labels.to(device)).backward()
        count += 1
    if not count:
        raise ValueError("batches is empty: give at least one (images, labels)")
    return [(b.expand_bn.weight.grad.cpu() / count, b.expand_bn.bias.grad.cpu() / count) for b in blocks(model)]

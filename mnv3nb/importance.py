"""How much each filter of the expansions matters: the paper's m = |γ|·S and the criteria it is compared with."""

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
    """What a criterion sees of one block's 1×1 expansion of N filters and its BatchNorm."""

    weight: Tensor  # (N, C, 1, 1)
    gamma: Tensor  # (N,)
    beta: Tensor  # (N,)
    gamma_grad: Tensor | None = None  # (N,), gradients of the loss, for criteria in NEEDS_DATA
    beta_grad: Tensor | None = None
    generator: torch.Generator | None = None  # for "random"


def filter_sparsity(weight: Tensor) -> Tensor:
    """S of every filter of a convolution (Eq. 3-4): the share of its weights that reach the layer's mean magnitude.

    `weight`: (N, C, H, W); result: (N,), in [0, 1]. Near 0 = redundant. The paper calls S a sparsity, though it is a
    density.
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
    """Uniform noise in [0, 1): the baseline that every criterion must beat."""
    return torch.rand(len(e.gamma), generator=e.generator)


def l2(e: Expansion) -> Tensor:
    """Euclidean norm of the filter's weights."""
    return e.weight.square().sum(dim=(1, 2, 3)).sqrt()


def fpgm(e: Expansion) -> Tensor:
    """Sum of distances to the layer's other filters: small near the geometric median (He et al. 2019)."""
    filters = e.weight.flatten(1)
    return torch.cdist(filters, filters).sum(dim=1)


def taylor(e: Expansion) -> Tensor:
    """|γ·∂L/∂γ + β·∂L/∂β|: first-order change of the loss L if the channel's BatchNorm output becomes 0.

    After Molchanov et al. (2019), with gradients averaged over the batches before the absolute value.
    """
    return (e.gamma * e.gamma_grad + e.beta * e.beta_grad).abs()


CRITERIA: dict[str, Callable[[Expansion], Tensor]] = {
    "gamma_sparsity": gamma_sparsity,
    "gamma": gamma,
    "sparsity": sparsity,
    "l1": l1,
    "l1_gamma": l1_gamma,
    "random": random,
    "l2": l2,
    "fpgm": fpgm,
    "taylor": taylor,
}
NEEDS_DATA = ("taylor",)  # criteria that need batches of images
RANKINGS = ("global", "layer")  # filters compete in the whole network, or within their layer

Batches = Iterable[tuple[Tensor, Tensor]]


def score(
    model: nn.Module, criterion: str = "gamma_sparsity", batches: Batches | None = None, seed: int = 0
) -> list[Tensor]:
    """Importance of every expansion filter: one tensor (width,) per block, on the CPU; larger = more important.

    `criterion`: a name in CRITERIA. `batches` of (images, labels): needed by "taylor" alone, which averages gradients
    over them; images as the network takes them, or uint8 (N, 3, H, H) at its image size. `seed`: only for
    "random". The model is untouched. Raises ValueError for an unknown criterion, missing batches, no blocks, or weights
    that are not finite.
    """
    function = lookup(CRITERIA, criterion, "criterion")
    found = blocks(model)
    gradients = [(None, None)] * len(found)
    if criterion in NEEDS_DATA:
        if batches is None:
            raise ValueError(f"criterion {criterion!r} needs gradients: give batches=[(images, labels), ...]")
        gradients = _gamma_and_beta_gradients(model, batches)

    generator = torch.Generator().manual_seed(seed)
    scores = []
    for block, (gamma_grad, beta_grad) in zip(found, gradients):
        expansion = Expansion(
            weight=block.expand.weight.detach().cpu(),
            gamma=block.expand_bn.weight.detach().cpu(),
            beta=block.expand_bn.bias.detach().cpu(),
            gamma_grad=gamma_grad,
            beta_grad=beta_grad,
            generator=generator,
        )
        for name in ("weight", "gamma", "beta"):
            if not getattr(expansion, name).isfinite().all():
                raise ValueError(f"{block.name}: {name} of the expansion is not finite: has training diverged?")
        values = function(expansion)
        if not values.isfinite().all():
            raise ValueError(f"{criterion!r} gives scores that are not finite in {block.name}: has training diverged?")
        scores.append(values)
    return scores


def rank_within_layers(scores: Sequence[Tensor]) -> list[Tensor]:
    """The rank of each score within its layer, in [0, 1): one global threshold then cuts the same share of each layer."""
    return [layer.argsort(stable=True).argsort().double() / len(layer) for layer in scores]


def _gamma_and_beta_gradients(model: nn.Module, batches: Batches) -> list[tuple[Tensor, Tensor]]:
    """Mean gradients of γ and β of each expansion's BatchNorm over the batches."""
    model = copy.deepcopy(model).eval().requires_grad_(True)
    model.zero_grad()
    device = next(model.parameters()).device
    count = 0
    for images, labels in batches:
        x = to_input(images, images.shape[-1]) if images.dtype == torch.uint8 else images
        loss = F.cross_entropy(model(x.to(device)), labels.to(device))
        loss.backward()  # gradients add up
        count += 1
    if count == 0:
        raise ValueError("batches is empty: give at least one (images, labels)")
    norms = [block.expand_bn for block in blocks(model)]
    return [(norm.weight.grad.cpu() / count, norm.bias.grad.cpu() / count) for norm in norms]

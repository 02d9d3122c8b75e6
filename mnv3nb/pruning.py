"""Scores -> one global threshold -> keep masks -> a new, smaller dense network (Algorithm 1, steps 3 to 6)."""

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .blocks import Block, blocks, narrow_block
from .model import MobileNetV3Large, make_divisible

SE_RULES = ("paper", "keep")


def keep_masks(scores: Sequence[Tensor], rate: float, multiple_of: int = 1, min_width: int = 1) -> list[Tensor]:
    """Which filters stay when the share `rate` of all of them, ranked together, is removed: one bool tensor per layer.

    Rate 0 keeps all; else the first int(total·rate) + 1 of a stable ascending sort of all scores go (ties by layer,
    then index): for distinct scores that is "keep m > t" with t = `threshold(scores, rate)`, and 2 507 of 5 016 stay
    at 0.5 (Table 5). A layer left with fewer than `min_width` keeps its best `min_width`; with `min_width=0` an
    emptied layer is an error, the paper's collapse at 70 %. `multiple_of=k` then moves each width to the nearest
    multiple of k (at least k, at most the largest within the layer; a narrower layer stays whole), best scores first.
    Raises ValueError for a rate outside [0, 1), scores that are not 1-D and finite, or a k larger than every layer.
    """
    check_pruning(rate, multiple_of, min_width)
    flat = _flatten(scores)
    if multiple_of > (widest := max(map(len, scores))):
        raise ValueError(f"multiple_of={multiple_of} is larger than every layer: the widest has {widest} filters")
    keep = torch.ones(len(flat), dtype=torch.bool)
    if rate > 0:
        keep[flat.argsort(stable=True)[: int(len(flat) * rate) + 1]] = False
    widths = [int(part.sum()) for part in keep.split([len(s) for s in scores])]
    if min_width == 0 and 0 in widths:
        empty = [i for i, width in enumerate(widths) if width == 0]
        raise ValueError(f"rate {rate} removes every filter of block(s) {empty}: prune less or set min_width ≥ 1")
    widths = [max(width, min(min_width, len(s))) for width, s in zip(widths, scores)]
    return top_masks(scores, [_align(w, len(s), multiple_of, min_width) for w, s in zip(widths, scores)])


def top_masks(scores: Sequence[Tensor], widths: Sequence[int]) -> list[Tensor]:
    """Masks that keep each layer's `widths[i]` best filters; among equal scores the later index stays."""
    ranks = [s.cpu().argsort(stable=True).argsort() for s in scores]
    return [rank >= len(rank) - width for rank, width in zip(ranks, widths, strict=True)]


def threshold(scores: Sequence[Tensor], rate: float) -> float:
    """t = sorted(m)[int(total·rate)], the global threshold of Table 2; at rate 0 it is the smallest score, which stays."""
    check_pruning(rate)
    flat = _flatten(scores)
    return float(flat.sort().values[int(len(flat) * rate)])


def layer_collapse_rates(scores: Sequence[Tensor]) -> list[float]:
    """The rate at which each layer loses its last filter; the network breaks at the smallest (paper: 70 %)."""
    flat = _flatten(scores)
    place = flat.argsort(stable=True).argsort()  # of each filter in the order in which they go
    return [int(part.max()) / len(flat) for part in place.split([len(s) for s in scores])]


def prune(model: nn.Module, masks: Sequence[Tensor], squeeze: str | None = None) -> nn.Module:
    """A new network with only the expansion filters that `masks` keep; `model` is untouched, kept weights are copies.

    Any network that `blocks` understands; the result has its class, its forward and its state-dict names. `squeeze`:
    "keep" leaves SE's hidden channels: exactly the dense network with the removed depthwise channels zeroed. "paper"
    narrows them to make_divisible(width / 4): only so does Table 5's network have 2.34 M parameters. None: "paper" for
    the paper's network, "keep" for others, whose SE has a ratio of its own. Raises ValueError for masks that do not fit.
    """
    squeeze = squeeze or ("paper" if isinstance(model, MobileNetV3Large) else "keep")
    check_pruning(squeeze=squeeze)
    pruned = copy.deepcopy(model)
    for block, mask in _checked_pairs(blocks(pruned), masks):
        count = se_width(int(mask.sum()), block.hidden, squeeze)
        narrow_block(block, mask.nonzero().flatten(), strongest_hidden(block, mask, count))
    return pruned


def se_width(width: int, hidden: int, squeeze: str) -> int:
    """Hidden channels of SE when its block has `width` channels left and had `hidden`; see `prune`."""
    return min(hidden, make_divisible(width / 4)) if squeeze == "paper" else hidden


def strongest_hidden(block: Block, mask: Tensor, count: int) -> Tensor:
    """Indices of the `count` hidden channels of SE that matter most to the channels that `mask` keeps, ascending.

    They have the largest product of incoming and outgoing L1 norms. Empty for a block without SE.
    """
    if not block.squeeze:
        return torch.empty(0, dtype=torch.long)
    mask = mask.to(block.squeeze.weight.device)
    incoming = block.squeeze.weight.detach()[:, mask].abs().sum(dim=(1, 2, 3))
    outgoing = block.excite.weight.detach()[mask].abs().sum(dim=(0, 2, 3))
    return (incoming * outgoing).argsort(descending=True, stable=True)[:count].sort().values


def check_pruning(rate: float = 0, multiple_of: int = 1, min_width: int = 1, squeeze: str = "paper") -> None:
    """Raises ValueError unless `keep_masks` and `prune` understand these."""
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1:
        raise ValueError(f"rate must be in [0, 1), got {rate!r} (0.5 removes half of all filters)")
    for name, value, least in (("multiple_of", multiple_of, 1), ("min_width", min_width, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name} must be an integer ≥ {least}, got {value!r}")
    if squeeze not in SE_RULES:
        raise ValueError(f"squeeze must be one of {', '.join(SE_RULES)}, got {squeeze!r}")


def _align(width: int, dense: int, k: int, least: int) -> int:
    if dense < k:
        return dense
    nearest = int(width / k + 0.5) * k
    return min(max(nearest, k, math.ceil(least / k) * k), dense // k * k)


def _flatten(scores: Sequence[Tensor]) -> Tensor:
    total = sum(len(s) for s in scores)
    if not total or any(s.ndim != 1 or not s.isfinite().all() for s in scores):
        raise ValueError("scores must be a list of 1-D tensors of finite numbers, one per filter, as from score()")
    return torch.cat([s.cpu() for s in scores])


def _checked_pairs(found: Sequence[Block], masks: Sequence[Tensor]) -> list[tuple[Block, Tensor]]:
    if len(masks) != len(found):
        raise ValueError(f"masks must be {len(found)} bool tensors, one per block, got {len(masks)}")
    for block, mask in zip(found, masks):
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != (block.width,):
            got = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(f"the mask of {block.name} must be a bool tensor of shape ({block.width},), got {got}")
        if not mask.any():
            raise ValueError(f"the mask of {block.name} removes all {block.width} filters: keep at least one")
    return list(zip(found, masks))

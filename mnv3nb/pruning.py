"""Scores -> one global threshold -> keep masks -> a new, smaller dense network (Algorithm 1, steps 3 to 6)."""

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .blocks import Block, blocks, narrow_block
from .model import MobileNetV3Large, make_divisible

SE_RULES = ("paper", "keep")  # what becomes of SE's hidden channels: see `prune`


def keep_masks(scores: Sequence[Tensor], rate: float, multiple_of: int = 1, min_width: int = 1) -> list[Tensor]:
    """One bool mask per layer of the filters that stay when the share `rate`, in [0, 1), of all of them is removed.

    All filters are ranked together. Rate 0 removes none, any other rate the lowest int(total·rate) + 1 (ties by layer,
    then index), so 2,507 of 5,016 stay at 0.5 (Table 5). A layer keeps at least its best `min_width`; with
    `min_width=0` an emptied layer raises ValueError (the paper's collapse at 70 %). Then `multiple_of=k` moves each
    width to the nearest multiple of k from k to the layer's size, also at rate 0; a layer narrower than k stays whole.
    """
    check_pruning(rate, multiple_of, min_width)
    flat = _flatten(scores)
    sizes = [len(layer) for layer in scores]
    if multiple_of > max(sizes):
        raise ValueError(f"multiple_of={multiple_of} is larger than every layer: the widest has {max(sizes)} filters")

    keep = torch.ones(len(flat), dtype=torch.bool)
    if rate > 0:
        # by place, not by m > t: the number removed is exact even where scores are equal
        lowest = flat.argsort(stable=True)[: _threshold_place(len(flat), rate) + 1]
        keep[lowest] = False
    widths = [int(layer.sum()) for layer in keep.split(sizes)]

    if min_width == 0 and 0 in widths:
        empty = [i for i, width in enumerate(widths) if width == 0]
        raise ValueError(f"rate {rate} removes every filter of block(s) {empty}: prune less or set min_width ≥ 1")
    aligned = []
    for width, size in zip(widths, sizes):
        width = max(width, min(min_width, size))
        aligned.append(_align(width, size, multiple_of, min_width))
    return top_masks(scores, aligned)


def top_masks(scores: Sequence[Tensor], widths: Sequence[int]) -> list[Tensor]:
    """Masks that keep the best `widths[i]` filters of each layer; among equal scores the later index stays."""
    masks = []
    for layer, width in zip(scores, widths, strict=True):
        masks.append(_ranks(layer.cpu()) >= len(layer) - width)
    return masks


def threshold(scores: Sequence[Tensor], rate: float) -> float:
    """t = sorted(m)[int(total·rate)], the global threshold of Table 2.

    Filters with m ≤ t are removed; at rate 0 t is the smallest score and nothing is.
    """
    check_pruning(rate)
    flat = _flatten(scores)
    return float(flat.sort().values[_threshold_place(len(flat), rate)])


def layer_collapse_rates(scores: Sequence[Tensor]) -> list[float]:
    """For each layer the lowest rate, in [0, 1), that removes its last filter; the paper's network breaks at 70 %."""
    flat = _flatten(scores)
    place = _ranks(flat)  # of each filter in the order of removal
    sizes = [len(layer) for layer in scores]
    return [int(layer.max()) / len(flat) for layer in place.split(sizes)]


def prune(model: nn.Module, masks: Sequence[Tensor], squeeze: str | None = None) -> nn.Module:
    """A new network with only the expansion filters that `masks` keep; `model` is untouched, kept weights are copies.

    Any network that `blocks` finds blocks in; class, forward and state-dict names stay. `squeeze`, SE's hidden
    channels: "keep" leaves them, so the result is exactly the dense network with the removed channels set to 0 after the
    depthwise activation; "paper" narrows them to make_divisible(width / 4), which alone gives Table 5's network 2.34 M
    parameters; None: "paper" for the paper's network, else "keep". Raises ValueError for masks that do not fit.
    """
    rule = default_se_rule(model) if squeeze is None else squeeze
    check_pruning(squeeze=rule)
    pruned = copy.deepcopy(model)
    found = blocks(pruned)
    _check_masks(found, masks)
    for block, mask in zip(found, masks):
        kept = mask.nonzero().flatten()
        count = se_width(len(kept), block.hidden, rule)
        narrow_block(block, kept, strongest_hidden(block, mask, count))
    return pruned


def default_se_rule(model: nn.Module) -> str:
    """The rule of SE_RULES that `prune` takes for `model` if none is given: other networks' SE has its own ratio."""
    return "paper" if isinstance(model, MobileNetV3Large) else "keep"


def se_width(width: int, hidden: int, rule: str) -> int:
    """Hidden channels of SE when its block has `width` channels left and had `hidden`; `rule`: one of SE_RULES."""
    return min(hidden, make_divisible(width / 4)) if rule == "paper" else hidden


def strongest_hidden(block: Block, mask: Tensor, count: int) -> Tensor:
    """Indices of the `count` hidden channels of SE that matter most to the channels that `mask` keeps, ascending.

    They have the largest product of incoming and outgoing L1 norms. Empty for a block without SE.
    """
    if not block.squeeze:
        return torch.empty(0, dtype=torch.long)
    mask = mask.to(block.squeeze.weight.device)
    incoming = block.squeeze.weight.detach()[:, mask].abs().sum(dim=(1, 2, 3))
    outgoing = block.excite.weight.detach()[mask].abs().sum(dim=(0, 2, 3))
    strongest_first = (incoming * outgoing).argsort(descending=True, stable=True)
    return strongest_first[:count].sort().values


def check_pruning(rate: float = 0, multiple_of: int = 1, min_width: int = 1, squeeze: str = "paper") -> None:
    """Raises ValueError for what `keep_masks` and `prune` do not accept."""
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1:
        raise ValueError(f"rate must be in [0, 1), got {rate!r} (0.5 removes half of all filters)")
    for name, value, least in (("multiple_of", multiple_of, 1), ("min_width", min_width, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be an integer ≥ {least}, got {value!r}")
    if squeeze not in SE_RULES:
        raise ValueError(f"squeeze must be one of {', '.join(SE_RULES)}, got {squeeze!r}")


def _ranks(scores: Tensor) -> Tensor:
    """The rank of each score, 0 = lowest; of equal ones the earlier is lower."""
    return scores.argsort(stable=True).argsort()


def _threshold_place(total: int, rate: float) -> int:
    """Place of the threshold among `total` ascending scores: the last one removed."""
    return int(total * rate)


def _align(width: int, size: int, k: int, min_width: int) -> int:
    """`width` rounded to a multiple of `k` from max(k, min_width) to `size`; a layer of fewer than k filters stays whole."""
    if size < k:
        return size
    nearest = int(width / k + 0.5) * k
    least = max(k, math.ceil(min_width / k) * k)
    most = size // k * k
    return min(max(nearest, least), most)


def _flatten(scores: Sequence[Tensor]) -> Tensor:
    total = sum(len(layer) for layer in scores)
    if total == 0 or any(layer.ndim != 1 or not layer.isfinite().all() for layer in scores):
        raise ValueError("scores must be a list of 1-D tensors of finite numbers, one per filter, as from score()")
    return torch.cat([layer.cpu() for layer in scores])


def _check_masks(found: Sequence[Block], masks: Sequence[Tensor]) -> None:
    if len(masks) != len(found):
        raise ValueError(f"masks must be {len(found)} bool tensors, one per block, got {len(masks)}")
    for block, mask in zip(found, masks):
        wanted = f"the mask of {block.name} must be a bool tensor of shape ({block.width},)"
        if not isinstance(mask, Tensor):
            raise ValueError(f"{wanted}, got {type(mask).__name__}")
        if mask.dtype != torch.bool or mask.shape != (block.width,):
            raise ValueError(f"{wanted}, got {mask.dtype} {tuple(mask.shape)}")
        if not mask.any():
            raise ValueError(f"the mask of {block.name} removes all {block.width} filters: keep at least one")

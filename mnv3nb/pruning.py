"""Scores -> one global threshold -> keep masks -> a new, smaller dense network (Algorithm 1, steps 3 to 6)."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from .budget import fit_widths, map_sides, unit_costs
from .folding import fold_bias_into
from .model import MobileNetV3Large, squeeze_widths

SQUEEZES = ("paper", "keep")


def keep_masks(
    scores: Sequence[Tensor], rate: float, multiple_of: int = 1, min_width: int = 1, budget: str | None = None
) -> list[Tensor]:
    """Which filters stay when the share `rate` of all of them, ranked together, is removed: one bool tensor a layer.

    Rate 0 keeps all; else the first int(total·rate) + 1 of a stable ascending sort of all scores go (ties by layer, then
    index): for distinct scores that is "keep m > t" with t = `threshold(scores, rate)`, and 2 507 of 5 016 stay at 0.5
    (Table 5). A layer left with less than `min_width` keeps its best `min_width`; with `min_width=0` an emptied layer
    is an error, the paper's collapse at 70 %. `multiple_of=k` then moves each width to the nearest multiple of k (at
    least k and `min_width`, at most the largest within the layer; a layer narrower than k stays whole), best scores first.
    Rounding may cost more than was asked for: with `budget` "filters", "parameters" or "flops" (of `prune`'s
    squeeze="paper") the multiples of k are instead chosen by `fit_widths` to keep the highest total score at no more of it
    than the widths before rounding.
    Raises ValueError for a rate outside [0, 1), scores that are not 1-D and finite, an emptied layer, a `multiple_of` larger
    than every layer, or a budget too small for the multiples.
    """
    check_words(rate, multiple_of, min_width)
    flat = _flatten(scores)
    if multiple_of > (widest := max(map(len, scores))):
        raise ValueError(f"multiple_of={multiple_of} is larger than every layer: the widest has {widest} filters")
    keep = torch.ones(len(flat), dtype=torch.bool)
    if rate > 0:
        keep[flat.argsort(stable=True)[: int(len(flat) * rate) + 1]] = False
    widths = [int(part.sum()) for part in keep.split([len(s) for s in scores])]
    empty = [i for i, width in enumerate(widths) if width == 0]
    if empty and min_width == 0:
        raise ValueError(
            f"rate {rate} removes every filter of unit(s) {empty}: the network breaks; prune less or set min_width ≥ 1"
        )
    widths = [max(width, min(min_width, len(s))) for width, s in zip(widths, scores)]
    if budget is not None:
        dense = [len(s) for s in scores]
        limit = sum(table[width] for table, width in zip(unit_costs(budget, dense), widths))
        tables = unit_costs(budget, dense, multiple_of)
        wide = [{w: c for w, c in t.items() if w >= min(min_width, max(t))} for t in tables]
        return top_masks(scores, fit_widths(scores, wide, limit))
    return top_masks(scores, [_align(width, len(s), multiple_of, min_width) for width, s in zip(widths, scores)])


def top_masks(scores: Sequence[Tensor], widths: Sequence[int]) -> list[Tensor]:
    """Masks that keep each layer's `widths[i]` best filters; among equal scores the later index stays."""
    masks = []
    for s, width in zip(scores, widths, strict=True):
        mask = torch.zeros(len(s), dtype=torch.bool)
        mask[s.cpu().argsort(stable=True)[len(s) - width :]] = True
        masks.append(mask)
    return masks


def threshold(scores: Sequence[Tensor], rate: float) -> float:
    """t = sorted(m)[int(total·rate)], the global threshold of Table 2; at rate 0 nothing goes and t is the smallest score."""
    check_words(rate)
    flat = _flatten(scores)
    return float(flat.sort().values[int(len(flat) * rate)])


def emptied_at(scores: Sequence[Tensor]) -> list[float]:
    """The rate at which the global ranking takes each layer's last filter; the network breaks at the least (paper: 70 %)."""
    flat = _flatten(scores)
    place = flat.argsort(stable=True).argsort()  # of each filter in the order in which they go
    return [int(part.max()) / len(flat) for part in place.split([len(s) for s in scores])]


def prune(
    model: MobileNetV3Large,
    masks: Sequence[Tensor],
    squeeze: str = "paper",
    fold_bias: bool = False,
    image_size: int = 224,
) -> MobileNetV3Large:
    """A new network with only the expansion filters that `masks` keep; `model` is untouched, kept weights are copies.

    The expansion's channels are the depthwise channels, the SE channels and the projection's inputs, so all of those
    follow (Figure 5). `squeeze="keep"` leaves SE's inner width: exactly the dense network with the removed depthwise
    channels zeroed. `"paper"` rebuilds it as `squeeze_widths` does, keeping the inner units with the largest product
    of incoming and outgoing L1 norms. Raises ValueError for masks that do not fit the network or empty a unit.

    `fold_bias=True` keeps what removed channels emit: at γ = 0 a channel is the constant act(β), and what becomes of it goes
    into the BatchNorm after the projection and into SE's biases, for images of `image_size` pixels. Exact for γ = 0: SE's
    pooled input, the projection's mean over the map, and all of it where the zero border of the depthwise convolution
    does not reach (or the map is one pixel). Approximate: the border's deviation from that mean; γ ≠ 0; with SE the scale
    of removed channels and the output of removed inner units, both taken at the mean input that BatchNorm's own
    parameters tell. It is for use without fine-tuning, in which BatchNorm measures its mean anew.
    """
    check_words(0, squeeze=squeeze)
    masks = _check_masks(model, masks)
    widths = [int(mask.sum()) for mask in masks]
    inner = model.squeeze if squeeze == "keep" else [min(q) for q in zip(squeeze_widths(widths), model.squeeze)]
    with torch.device("meta"):  # shapes only: nothing is drawn from the random number generator
        small = MobileNetV3Large(model.num_classes, widths, inner)
    state, inner_kept = {key: value.detach() for key, value in model.state_dict().items()}, {}
    for i, mask in enumerate(masks):
        mask = mask.to(state[f"blocks.{i}.expand.0.weight"].device)
        for name in ("expand", "depthwise"):
            for key in ("0.weight", "1.weight", "1.bias", "1.running_mean", "1.running_var"):
                state[f"blocks.{i}.{name}.{key}"] = state[f"blocks.{i}.{name}.{key}"][mask]
        state[f"blocks.{i}.project.0.weight"] = state[f"blocks.{i}.project.0.weight"][:, mask]
        if inner[i]:
            down, up = state[f"blocks.{i}.se.fc1.weight"][:, mask], state[f"blocks.{i}.se.fc2.weight"][mask]
            strength = down.abs().sum(dim=(1, 2, 3)) * up.abs().sum(dim=(0, 2, 3))
            best = strength.argsort(descending=True, stable=True)[: inner[i]].sort().values
            inner_kept[i] = best
            state[f"blocks.{i}.se.fc1.weight"], state[f"blocks.{i}.se.fc2.weight"] = down[best], up[:, best]
            state[f"blocks.{i}.se.fc1.bias"] = state[f"blocks.{i}.se.fc1.bias"][best]
            state[f"blocks.{i}.se.fc2.bias"] = state[f"blocks.{i}.se.fc2.bias"][mask]
    small.load_state_dict({key: value.clone() for key, value in state.items()}, assign=True)
    if fold_bias:
        for i, mask in enumerate(masks):
            fold_bias_into(
                copy.deepcopy(model.blocks[i]).eval(), small.blocks[i], mask, inner_kept.get(i), map_sides(image_size)[i]
            )
    return small.train(model.training)


def _align(width: int, dense: int, k: int, least: int) -> int:
    least = max(k, -(-least // k) * k)
    return dense if dense < k else min(max(least, int(width / k + 0.5) * k), dense // k * k)


def check_words(rate: float, multiple_of: int = 1, min_width: int = 1, squeeze: str = "paper") -> None:
    """Raises ValueError unless `keep_masks` and `prune` know what to do with these."""
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1:
        raise ValueError(f"rate must be in [0, 1), got {rate!r} (0.5 removes half of all filters)")
    for name, value, least in (("multiple_of", multiple_of, 1), ("min_width", min_width, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name} must be a whole number ≥ {least}, got {value!r}")
    if squeeze not in SQUEEZES:
        raise ValueError(f"squeeze must be one of {', '.join(SQUEEZES)}, got {squeeze!r}")


def _flatten(scores: Sequence[Tensor]) -> Tensor:
    total = sum(len(s) for s in scores)
    if not total or any(s.ndim != 1 or not s.isfinite().all() for s in scores):
        raise ValueError("scores must be a list of 1-D tensors of finite numbers, one score a filter, as score() returns")
    return torch.cat([s.cpu() for s in scores])


def _check_masks(model: MobileNetV3Large, masks: Sequence[Tensor]) -> list[Tensor]:
    masks = list(masks)
    if len(masks) != len(model.widths):
        raise ValueError(f"masks must be {len(model.widths)} bool tensors, one a unit, got {len(masks)}")
    for i, (mask, width) in enumerate(zip(masks, model.widths)):
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != (width,):
            got = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(f"the mask of unit {i} must be a bool tensor of shape ({width},), got {got}")
        if not mask.any():
            raise ValueError(f"the mask of unit {i} removes all {width} filters: keep at least one")
    return masks

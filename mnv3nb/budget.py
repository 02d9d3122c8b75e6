"""What each unit costs at each width, and the widths that keep the most score within a budget."""

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from .model import DENSE_WIDTHS, STEM, BLOCKS, make_divisible

COSTS = ("filters", "parameters", "flops")


def unit_costs(
    cost: str, dense: Sequence[int] = DENSE_WIDTHS, multiple_of: int = 1, image_size: int = 224
) -> list[dict[int, int]]:
    """For each of the 15 units {width: its cost} at every multiple of `multiple_of` up to `dense[i]` (narrower ones: whole).

    `cost`: "filters", "parameters", or "flops" as `count_flops` counts them at `image_size` pixels; sums over the units
    differ from the network's by the stem, head and classifier. Raises ValueError for another cost or number of units.
    """
    if cost not in COSTS or len(dense) != len(BLOCKS) or multiple_of < 1:
        raise ValueError(
            f"the cost must be one of {', '.join(COSTS)}, of {len(BLOCKS)} units, at multiples of 1 or more; "
            f"got {cost!r} of {len(dense)} at multiples of {multiple_of}"
        )
    tables, channels, sides = [], STEM, map_sides(image_size)
    for (kernel, _, out, has_se, act, _), widest, a, b in zip(BLOCKS, dense, sides, sides[1:]):
        before, after, relu, table = a**2, b**2, act == "RE", {}
        for w in range(multiple_of, widest + 1, multiple_of) if widest >= multiple_of else (widest,):
            q = make_divisible(w / 4) if has_se else 0
            parameters = w * (channels + kernel**2 + 4 + out) + 2 * out + (2 * w * q + q + w if q else 0)
            flops = (
                w * (before * (channels + 2 + relu) + after * (kernel**2 + 2 + relu + out) + 2 * q)
                + q
                + after * 2 * out
            )
            table[w] = {"filters": w, "parameters": parameters, "flops": flops}[cost]
        tables.append(table)
        channels = out
    return tables


def map_sides(image_size: int) -> list[int]:
    """Side in pixels of the square map that each unit takes, and last of the one that the head takes."""
    strides = (2, *(row[5] for row in BLOCKS))
    return list(accumulate(strides, lambda side, stride: -(-side // stride), initial=image_size))[1:]


def fit_widths(
    scores: Sequence[Tensor], costs: Sequence[Mapping[int, float]], budget: float, steps: int = 4096
) -> list[int]:
    """The width of each layer such that the kept scores add up to the most and the costs to no more than `budget`.

    `costs[i]` maps each width allowed in layer i to its cost: `unit_costs`, or measured milliseconds. A knapsack, solved by
    dynamic programming: best[b] is the highest score of the layers so far with b parts of the budget spent. The budget
    is cut into `steps` parts and costs are rounded up to them; whole numbers up to `steps` are exact, so that "filters"
    without alignment gives the paper's global ranking. Raises ValueError for a budget that no choice of widths meets.
    """
    cheapest = [min(table, key=table.get) for table in costs]
    least = sum(table[width] for table, width in zip(costs, cheapest))
    if least > budget:
        raise ValueError(
            f"no widths meet a budget of {budget:g}: the smallest network costs {least:g}, widths {cheapest}"
        )
    whole = budget <= steps and all(isinstance(c, int) for table in costs for c in table.values())
    steps = int(budget) if whole else steps
    best, choices = torch.zeros(steps + 1, dtype=torch.double), []
    for s, table in zip(scores, costs, strict=True):
        kept = F.pad(s.cpu().double().sort(descending=True).values.cumsum(0), (1, 0))
        parts = [c if whole else math.ceil(c / budget * steps - 1e-9) for c in table.values()]
        options = torch.full((len(table), steps + 1), -torch.inf, dtype=torch.double)
        for row, width, part in zip(options, table, parts):
            row[part:] = best[: max(0, steps + 1 - part)] + kept[width]
        best, choice = options.max(0)
        choices.append((choice, list(table), parts))
    if best[-1] == -torch.inf:  # met, but not by costs rounded up
        return cheapest
    widths, left = [], steps
    for choice, options, parts in reversed(choices):
        widths.append(options[choice[left]])
        left -= parts[choice[left]]
    return widths[::-1]

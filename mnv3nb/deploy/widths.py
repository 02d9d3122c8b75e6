"""What each block costs at each width, and the widths that keep the most score within a budget."""

import copy
import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..blocks import blocks, narrow_block
from ..costs import count_parameters, layer_costs
from ..model import MobileNetV3Large
from ..pruning import check_pruning, keep_masks, prune, se_width, top_masks

COSTS = ("filters", "parameters", "flops")


def fit_masks(model: nn.Module, scores: Sequence[Tensor], rate: float, multiple_of: int, budget: str) -> list[Tensor]:
    """Keep masks with widths that are multiples of `multiple_of` and cost no more of `budget` than `rate` alone leaves.

    `keep_masks` moves each width to the nearest multiple, which may cost more than was asked for. Here `fit_widths`
    chooses the multiples together, for the highest total score. `budget`: "filters", "parameters" or "flops".
    Raises ValueError for what `keep_masks` and `block_costs` refuse and for a budget too small for the multiples.
    """
    tables = block_costs(model, budget, multiple_of)
    limit = sum(current_costs(prune(model, keep_masks(scores, rate)), budget))
    return top_masks(scores, fit_widths(scores, tables, limit))


def block_costs(
    model: nn.Module, cost: str, multiple_of: int = 1, image_size: int = 224, squeeze: str | None = None
) -> list[dict[int, int]]:
    """For each block {width: its cost} at every multiple of `multiple_of` up to its width (a narrower block: its width).

    `cost`: "filters", "parameters", or "flops" as `count_flops` counts them at `image_size` pixels, with the hidden
    channels of SE that `prune(squeeze=...)` leaves at that width. The sum over the blocks differs from the network's cost by what
    lies outside the blocks. Raises ValueError for another cost or a multiple below 1.
    """
    if cost not in COSTS:
        raise ValueError(f"the cost must be one of {', '.join(COSTS)}, got {cost!r}")
    check_pruning(multiple_of=multiple_of)
    # a cost is base + channel·w + hidden·h + pair·w·h at width w with h hidden channels: four points tell the factors
    points = [current_costs(_uniform(model, w, h), cost, image_size) for w, h in ((1, 1), (2, 1), (1, 2), (2, 2))]
    tables = []
    for block, at_1_1, at_2_1, at_1_2, at_2_2 in zip(blocks(model), *points):
        pair = at_2_2 - at_2_1 - at_1_2 + at_1_1
        channel, hidden = at_2_1 - at_1_1 - pair, at_1_2 - at_1_1 - pair
        base, table = at_1_1 - channel - hidden - pair, {}
        for w in range(multiple_of, block.width + 1, multiple_of) or (block.width,):
            h = se_width(w, block.hidden, squeeze or default_se_rule(model))
            table[w] = base + channel * w + hidden * h + pair * w * h
        tables.append(table)
    return tables


def current_costs(model: nn.Module, cost: str, image_size: int = 224) -> list[int]:
    """What each block of `model` costs at its width; see `block_costs`."""
    if cost == "filters":
        return [block.width for block in blocks(model)]
    if cost == "parameters":
        return [count_parameters(block.module) for block in blocks(model)]
    rows = layer_costs(model, image_size)
    names = [f"{block.name}." for block in blocks(model)]
    return [sum(row["flops"] for row in rows if row["name"].startswith(name)) for name in names]


def default_se_rule(model: nn.Module) -> str:
    """The `squeeze` that `prune` takes for `model` if none is given."""
    return "paper" if isinstance(model, MobileNetV3Large) else "keep"


def fit_widths(
    scores: Sequence[Tensor], costs: Sequence[Mapping[int, float]], budget: float, steps: int = 4096
) -> list[int]:
    """The width of each block such that the kept scores add up to the most and the costs to no more than `budget`.

    `costs[i]` maps each width allowed in block i to its cost: from `block_costs`, or measured milliseconds. A knapsack,
    solved by dynamic programming over the budget, which is cut into `steps` parts; costs are rounded up to parts.
    Integers up to `steps` are exact, so that "filters" without alignment gives the paper's global ranking.
    Raises ValueError for a budget that no choice of widths meets.
    """
    cheapest = [min(table, key=table.get) for table in costs]
    least = sum(table[width] for table, width in zip(costs, cheapest))
    if least > budget:
        raise ValueError(
            f"no widths meet a budget of {budget:g}: the smallest network costs {least:g}, widths {cheapest}"
        )
    exact = budget <= steps and all(isinstance(c, int) for table in costs for c in table.values())
    steps = int(budget) if exact else steps
    parts = [[c if exact else math.ceil(c / budget * steps - 1e-9) for c in table.values()] for table in costs]
    best, choices = torch.zeros(steps + 1, dtype=torch.double), []  # best[b]: highest score so far for b parts
    for s, table, needed in zip(scores, costs, parts, strict=True):
        kept = F.pad(s.cpu().double().sort(descending=True).values.cumsum(0), (1, 0))  # kept[w]: score of the w best
        options = torch.full((len(table), steps + 1), -torch.inf, dtype=torch.double)
        for row, width, part in zip(options, table, needed):
            row[part:] = best[: max(0, steps + 1 - part)] + kept[width]
        best, choice = options.max(0)
        choices.append(choice)
    if best[-1] == -torch.inf:  # the budget is met, but not by costs rounded up
        return cheapest
    widths, left = [], steps
    for choice, table, needed in zip(reversed(choices), reversed(costs), reversed(parts)):
        place = int(choice[left])
        widths.append(list(table)[place])
        left -= needed[place]
    return widths[::-1]


def _uniform(model: nn.Module, width: int, hidden: int) -> nn.Module:
    """A copy of `model`, shapes only, with blocks of `width` channels and `hidden` hidden channels of SE."""
    small = copy.deepcopy(model).to("meta").float()
    for block in blocks(small):
        narrow_block(block, torch.zeros(width, dtype=torch.long), torch.zeros(hidden, dtype=torch.long))
    return small

"""What each block costs at each width, and the widths that keep the most score within a budget."""

import copy
import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..blocks import Block, blocks, narrow_block
from ..costs import count_parameters, layer_costs
from ..pruning import check_pruning, default_se_rule, keep_masks, prune, se_width, top_masks

COST_NAMES = ("filters", "parameters", "flops")


def fit_masks(
    model: nn.Module, scores: Sequence[Tensor], rate: float, multiple_of: int, cost: str, image_size: int = 224
) -> list[Tensor]:
    """Keep masks with widths that are multiples of `multiple_of` and cost no more than the widths that `rate` leaves.

    `keep_masks` moves each width to the nearest multiple, which may cost more than was asked for. Here `fit_widths`
    chooses all multiples together, for the highest total score. `cost`: "filters", "parameters" or "flops" at
    `image_size` pixels. Raises ValueError for what `keep_masks` and `block_costs` refuse, and if even the smallest
    multiples cost too much.
    """
    tables = block_costs(model, cost, multiple_of, image_size)
    unaligned = prune(model, keep_masks(scores, rate))
    budget = sum(current_costs(unaligned, cost, image_size))
    return top_masks(scores, fit_widths(scores, tables, budget))


def block_costs(
    model: nn.Module, cost: str, multiple_of: int = 1, image_size: int = 224, squeeze: str | None = None
) -> list[dict[int, int]]:
    """For each block {width: its cost}, at every multiple of `multiple_of` up to the block's width.

    A block narrower than `multiple_of` has its own width only. `cost`: "filters", "parameters", or "flops" as
    `count_flops` counts them at `image_size` pixels. SE has the hidden channels that `prune(squeeze=...)` leaves.
    What lies outside the blocks is not counted. Raises ValueError for another cost or a multiple below 1.
    """
    if cost not in COST_NAMES:
        raise ValueError(f"the cost must be one of {', '.join(COST_NAMES)}, got {cost!r}")
    check_pruning(multiple_of=multiple_of)
    se_rule = squeeze or default_se_rule(model)

    # A block has w channels, h hidden channels in SE, and a fixed number of channels outside. Its depthwise convolution,
    # BatchNorm, biases and ReLU cost a constant per channel. Its 1×1 convolutions cost a constant per pair of an input
    # and an output channel, and none leads from w to w or from h to h. So no term of the cost is higher than w·h:
    #     cost(w, h) = base + channel·w + hidden·h + pair·w·h
    # Four costs determine the four factors:
    #     cost(1, 1) = base +   channel +   hidden +   pair
    #     cost(2, 1) = base + 2·channel +   hidden + 2·pair
    #     cost(1, 2) = base +   channel + 2·hidden + 2·pair
    #     cost(2, 2) = base + 2·channel + 2·hidden + 4·pair
    cost_1_1 = current_costs(_with_uniform_blocks(model, width=1, hidden=1), cost, image_size)
    cost_2_1 = current_costs(_with_uniform_blocks(model, width=2, hidden=1), cost, image_size)
    cost_1_2 = current_costs(_with_uniform_blocks(model, width=1, hidden=2), cost, image_size)
    cost_2_2 = current_costs(_with_uniform_blocks(model, width=2, hidden=2), cost, image_size)
    tables = []
    for i, block in enumerate(blocks(model)):
        pair = cost_2_2[i] - cost_2_1[i] - cost_1_2[i] + cost_1_1[i]
        channel = cost_2_1[i] - cost_1_1[i] - pair
        hidden = cost_1_2[i] - cost_1_1[i] - pair
        base = cost_1_1[i] - channel - hidden - pair
        table = {}
        for w in _allowed_widths(block, multiple_of):
            h = se_width(w, block.hidden, se_rule)
            table[w] = base + channel * w + hidden * h + pair * w * h
        tables.append(table)
    return tables


def current_costs(model: nn.Module, cost: str, image_size: int = 224) -> list[int]:
    """What each block of `model` costs as it is; for `cost` and `image_size` see `block_costs`."""
    found = blocks(model)
    if cost == "filters":
        return [block.width for block in found]
    if cost == "parameters":
        return [count_parameters(block.module) for block in found]
    layers = layer_costs(model, image_size)
    costs = []
    for block in found:
        inside = [layer["flops"] for layer in layers if layer["name"].startswith(f"{block.name}.")]
        costs.append(sum(inside))
    return costs


def fit_widths(
    scores: Sequence[Tensor], costs: Sequence[Mapping[int, float]], budget: float, steps: int = 4096
) -> list[int]:
    """The width of each block such that the kept scores add up to the most and the costs to no more than `budget`.

    `costs[i]` maps each width allowed in block i to its cost, from `block_costs` or in measured milliseconds. This is a
    knapsack problem, solved by dynamic programming over the budget. The budget is cut into `steps` parts, and costs are rounded
    up to parts. Integer costs within a budget of at most `steps` are exact, so that "filters" without alignment gives
    the paper's global ranking. Raises ValueError for a budget that no choice of widths meets.
    """
    cheapest = [min(table, key=table.get) for table in costs]
    least = sum(table[width] for table, width in zip(costs, cheapest))
    if least > budget:
        raise ValueError(
            f"no widths meet a budget of {budget:g}: the smallest network costs {least:g}, widths {cheapest}"
        )
    if budget <= steps and all(_has_integer_costs(table) for table in costs):
        capacity = int(budget)  # a part is 1
        parts_of_blocks = [list(table.values()) for table in costs]
    else:
        capacity = steps
        parts_of_blocks = [_in_parts(table, budget, steps) for table in costs]

    # best[p]: the highest score of the blocks so far that p parts pay for; -inf: they do not pay for any widths
    best = torch.zeros(capacity + 1, dtype=torch.double)
    choices = []  # for each block and p, the place of the chosen width in the block's table
    for block_scores, table, parts in zip(scores, costs, parts_of_blocks, strict=True):
        kept_score = _scores_by_width(block_scores)
        options = torch.full((len(table), capacity + 1), -torch.inf, dtype=torch.double)
        for place, (width, needed) in enumerate(zip(table, parts)):
            if needed <= capacity:
                options[place, needed:] = best[: capacity + 1 - needed] + kept_score[width]
        best, choice = options.max(dim=0)
        choices.append(choice)
    if best[capacity] == -torch.inf:  # the costs meet the budget, but not once they are rounded up
        return cheapest

    widths = []
    left = capacity
    for choice, table, parts in zip(reversed(choices), reversed(costs), reversed(parts_of_blocks)):
        place = int(choice[left])
        widths.append(list(table)[place])
        left -= parts[place]
    widths.reverse()
    return widths


def _allowed_widths(block: Block, multiple_of: int) -> list[int]:
    if block.width < multiple_of:
        return [block.width]
    return list(range(multiple_of, block.width + 1, multiple_of))


def _with_uniform_blocks(model: nn.Module, width: int, hidden: int) -> nn.Module:
    """A copy of `model`, shapes only, whose blocks all have `width` channels and `hidden` hidden channels of SE."""
    small = copy.deepcopy(model).to("meta").float()
    for block in blocks(small):
        narrow_block(block, torch.zeros(width, dtype=torch.long), torch.zeros(hidden, dtype=torch.long))
    return small


def _has_integer_costs(table: Mapping[int, float]) -> bool:
    return all(isinstance(cost, int) for cost in table.values())


def _in_parts(table: Mapping[int, float], budget: float, steps: int) -> list[int]:
    """The costs in `table` as numbers of parts of `budget`, rounded up."""
    return [math.ceil(cost / budget * steps - 1e-9) for cost in table.values()]  # 1e-9: 3.0000000001 is 3


def _scores_by_width(scores: Tensor) -> Tensor:
    """The score kept at each width 0, 1, ...: that of the best filters."""
    best_first = scores.cpu().double().sort(descending=True).values
    return F.pad(best_first.cumsum(0), (1, 0))

"""Checks of the sheet cut_and_repair."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mnv3nb
from mnv3nb.blocks import batch_norms
from mnv3nb.data.batches import to_input
from mnv3nb.model import InvertedResidual

from .networks import (
    SIDE,
    digits,
    lively_network,
    random_block,
    random_scores,
    shake,
    small_network,
)
from .verdict import mistake, same, task


@task(points=2)
def my_collapse(ask):
    cases = [(random_scores(seed=7),), (mnv3nb.score(lively_network(2)),)]
    right, first, local = [], [], []
    for (scores,) in cases:
        right.append(mnv3nb.layer_collapse_rates(scores))
        total = sum(map(len, scores))
        first.append([int((torch.cat(scores) < s.min()).sum()) / total for s in scores])
        local.append([1 - 1 / len(s) for s in scores])
    totals = [sum(map(len, scores)) for (scores,) in cases]
    known = {
        "that is when a block loses its first filter: it is empty when its best one goes": first,
        "inside its own block the best filter is always last: rank all filters of the network together": local,
        "one place too far: the filter at place ⌊n·rate⌋, counted from 0, goes": [
            [rate + 1 / n for rate in rates] for rates, n in zip(right, totals)
        ],
        "a rate is a share: divide the place by the number of all filters": [
            [rate * n for rate in rates] for rates, n in zip(right, totals)
        ],
        "the share that is left, not the share that is gone": [[1 - rate for rate in rates] for rates in right],
    }
    hint = "at which place of the ranking of all filters is the block's best one? `keep_masks(..., min_width=0)` tells"
    return mistake([ask(*case) for case in cases], right, known, hint)


@task(points=2)
def my_constants(ask):
    betas = torch.tensor([-4.0, -1.0, 0.0, 0.5, 2.0, 7.0])
    right = []
    for activation in ("RE", "HS"):
        module = InvertedResidual(16, (3, 6, 6, False, activation, 1), 6, 0).eval()
        module.expand[1].weight.data.zero_()
        module.expand[1].bias.data = betas.clone()
        with torch.no_grad():
            right.append(module.expand(torch.randn(1, 16, 2, 2))[0, :, 0, 0])
    known = {
        "γ = 0 does not make a channel 0: BatchNorm still adds β": [torch.zeros(6), torch.zeros(6)],
        "β then goes through the activation": [betas, betas],
        "ReLU6 ends at 6": [betas.relu(), right[1]],
        "h-swish is x·ReLU6(x + 3)/6, not x·sigmoid(x)": [right[0], F.silu(betas)],
        "h-swish multiplies by x: that is the hard sigmoid": [right[0], F.hardsigmoid(betas)],
        "h-swish stands in the later blocks: it is not ReLU6": [right[0], right[0]],
    }
    got = ask(betas)
    hint = (
        "two tensors: BatchNorm gives γ·x̂ + β; what is left of it at γ = 0, and what do ReLU6 and h-swish make of that?"
    )
    return mistake([got], [right], {m: [a] for m, a in known.items()}, hint)


@task(points=3)
def my_running_mean(ask):
    block, mask = random_block(24, seed=3), torch.arange(24) % 3 > 0
    block.depthwise_bn.weight.data[~mask] = 0
    weight, beta, mean = (
        block.project.weight.detach()[:, :, 0, 0],
        block.depthwise_bn.bias.detach(),
        block.project_bn.running_mean,
    )
    constants = beta.clamp(0, 6)
    shift = weight[:, ~mask] @ constants[~mask]
    cut = mnv3nb.prune(block.module, [mask])
    before = mean.clone()
    answer = ask(block, mask)
    known = {
        "the wrong sign: BatchNorm subtracts the mean, so what is missing makes it smaller": before + shift,
        "constants of removed channels are missing, not of those that stay": before - weight[:, mask] @ constants[mask],
        "β goes through ReLU6 before it reaches the projection": before - weight[:, ~mask] @ beta[~mask],
        "that is the change alone: the mean measured so far is missing": -shift,
        "that is what is missing: subtract it from the mean measured so far": shift,
        "the mean is unchanged: nothing is folded": before,
    }
    if not same(block.project_bn.running_mean, before):
        return "return a new tensor: the block given still works with its own mean"
    (folded,) = mnv3nb.blocks(cut)
    x = torch.randn(2, 16, 9, 9, generator=torch.Generator().manual_seed(0))
    if isinstance(answer, Tensor) and answer.shape == before.shape:
        folded.project_bn.running_mean = answer.detach()
        with torch.no_grad():
            if torch.allclose(folded.module(x), block.module(x), atol=1e-4):
                return None
    hint = "each removed channel adds (its column of the projection) · (its constant) to every output"
    return mistake([answer], [before - shift], {m: [a] for m, a in known.items()}, hint)


@task(points=3)
def my_reestimate(ask):
    images = digits().train_images[:160]
    batches = [to_input(part, SIDE) for part in images.split(40)]
    start = small_network(5).eval()
    shake(start)
    right = copy.deepcopy(start)
    mnv3nb.reestimate_batchnorm(right, images, SIDE, batch_size=40)
    moving = {}
    for name, reset, momentum in (("old", False, 0.1), ("new", True, 0.1), ("last", True, 1.0)):
        moving[name] = copy.deepcopy(start).train()
        for bn in batch_norms(moving[name]):
            bn.momentum = momentum
            if reset:
                bn.reset_running_stats()
        with torch.no_grad():
            for x in batches:
                moving[name](x)
    got = ask(copy.deepcopy(start), batches)
    if not isinstance(got, nn.Module):
        return "return the network"
    if got.training or any(module.training for module in got.modules()):
        return "the network must be in eval mode when it comes back"
    if not same([*map(Tensor.detach, got.parameters())], [*map(Tensor.detach, start.parameters())]):
        return "weights, γ and β must stay as they are: no optimizer, only forward passes"
    empty = [
        torch.zeros_like(mean) if i % 2 == 0 else torch.ones_like(mean) for i, mean in enumerate(_statistics(start))
    ]
    known = {
        "the statistics are the old ones: in eval mode a BatchNorm uses them and does not measure": _statistics(start),
        "they are reset, but nothing was measured: run the batches in train mode": empty,
        "still partly the old statistics: reset_running_stats() first, and an average that weighs all batches alike": (
            _statistics(moving["old"])
        ),
        "a moving average forgets the first batches: momentum=None weighs all batches alike": _statistics(
            moving["new"]
        ),
        "only the last batch counts: momentum=None weighs all batches alike": _statistics(moving["last"]),
    }
    hint = (
        "for each BatchNorm reset_running_stats() and momentum=None; then all batches in train mode, without gradients"
    )
    return mistake([_statistics(got)], [_statistics(right)], {m: [a] for m, a in known.items()}, hint)


def _statistics(model: nn.Module) -> list[Tensor]:
    return [tensor for bn in batch_norms(model) for tensor in (bn.running_mean, bn.running_var)]

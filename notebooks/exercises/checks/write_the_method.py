"""Checks of the sheet write_the_method."""

import torch
from torch import Tensor

import mnv3nb
from mnv3nb import paper

from .networks import (
    TWO_FILTERS,
    copied,
    dense_costs,
    lively_network,
    random_block,
    random_scores,
)
from .verdict import form, mistake, same, task


@task(points=2)
def my_sparsity(ask):
    generator = torch.Generator().manual_seed(0)
    cases = [TWO_FILTERS[:, :, None, None], torch.randint(-4, 5, (8, 4, 3, 3), generator=generator).float()]
    cases[1][0] *= 3
    axes = (1, 2, 3)
    known = {
        "the mean is the layer's, not the filter's": [
            (k.abs() >= k.abs().mean(axes, keepdim=True)).float().mean(axes) for k in cases
        ],
        "|k| ≥ M: weights that equal the mean count": [(k.abs() > k.abs().mean()).float().mean(axes) for k in cases],
        "compare magnitudes, not signed weights": [(k >= k.abs().mean()).float().mean(axes) for k in cases],
        "M is the mean of magnitudes: of signed weights it is almost 0": [
            (k.abs() >= k.mean()).float().mean(axes) for k in cases
        ],
        "the share of the others: S counts what reaches the mean": [
            (k.abs() < k.abs().mean()).float().mean(axes) for k in cases
        ],
        "a share, not a count: divide by the weights of a filter": [
            (k.abs() >= k.abs().mean()).float().sum(axes) for k in cases
        ],
    }
    right = [mnv3nb.filter_sparsity(k) for k in cases]
    return mistake(
        [ask(k) for k in cases], right, known, "compare each |k| with M, then average over a filter's weights"
    )


@task(points=1)
def my_scores(ask):
    model = lively_network(1)
    found, right = mnv3nb.blocks(model), mnv3nb.score(model)
    shares = mnv3nb.score(model, "sparsity")
    of_depthwise = [mnv3nb.filter_sparsity(b.depthwise.weight.detach()) for b in found]
    known = {
        "that is |γ| alone: S is missing": mnv3nb.score(model, "gamma"),
        "that is S alone: |γ| is missing": shares,
        "γ can be negative: take |γ|": [b.expand_bn.weight.detach() * s for b, s in zip(found, shares)],
        "S of the expansion's filters, not of the depthwise ones": [
            b.expand_bn.weight.detach().abs() * s for b, s in zip(found, of_depthwise)
        ],
        "γ of the BatchNorm behind the expansion, not of the one behind the depthwise convolution": [
            b.depthwise_bn.weight.detach().abs() * s for b, s in zip(found, shares)
        ],
    }
    got = ask(model)
    if isinstance(got, list) and any(isinstance(score, Tensor) and score.requires_grad for score in got):
        got = [score.detach() for score in got]
    return mistake(
        [got], [right], {m: [a] for m, a in known.items()}, "one tensor per block: |γ| times S, filter by filter"
    )


@task(points=2)
def my_masks(ask):
    cases = [(random_scores(mnv3nb.DENSE_WIDTHS), 0.5), (random_scores(seed=6), 0.25)]
    right = [mnv3nb.keep_masks(*case) for case in cases]
    known = {
        "the filter at the threshold goes as well: keep m > t, 2 507 filters at 50 %": [
            [s >= mnv3nb.threshold(scores, rate) for s in scores] for scores, rate in cases
        ],
        "upside down: True is kept": [[~mask for mask in masks] for masks in right],
        "one threshold for all layers, not one for each": [
            [mask for s in scores for mask in mnv3nb.keep_masks([s], rate)] for scores, rate in cases
        ],
        "the rate is a share of filters, not the threshold": [[s > rate for s in scores] for scores, rate in cases],
    }
    got = [ask(*case) for case in cases]
    if wrong := form(got[0], right[0]):
        return wrong
    if not all(isinstance(mask, Tensor) and mask.dtype == torch.bool for mask in got[0]):
        return "masks are bool tensors, one per layer"
    kept, published = sum(int(mask.sum()) for mask in got[0]), paper.TABLE_5.after.sum()
    return mistake(got, right, known, f"you keep {kept} of 5 016 filters, the paper {published}")


@task(points=3)
def my_cut(ask):
    whole, mask = random_block(64), torch.arange(64) % 3 > 0
    width, cut = int(mask.sum()), ask(copied(whole), mask)
    if not isinstance(cut, mnv3nb.Block):
        return "return the block, with smaller layers"
    parts = {name: getattr(cut, name) for name in ("expand", "expand_bn", "depthwise", "depthwise_bn")}
    tensors = {f"{p}.{n}": t for p, part in parts.items() for n, t in part.state_dict().items() if t.ndim}
    outputs, inputs = cut.project.weight.shape[:2]
    if all(len(tensor) == 64 for tensor in tensors.values()) and inputs == 64:
        return "nothing is smaller than before: replace the tensors (`conv.weight.data = ...`); zeros are not a cut"
    if outputs != 24:
        return "the projection keeps its outputs and loses inputs: slice its second dimension"
    if late := [name for name, tensor in tensors.items() if len(tensor) != width]:
        return f"{width} channels stay, but not yet in {', '.join(late)}"
    if inputs != width:
        return "the projection still takes 64 channels: slice its second dimension"
    if cut.depthwise.groups != width:
        return f"the depthwise convolution still has {cut.depthwise.groups} groups: one for each of its channels"
    x = torch.randn(2, 16, 9, 9, generator=torch.Generator().manual_seed(0))
    expand, depthwise, project = whole.module.expand, whole.module.depthwise, whole.module.project
    with torch.no_grad():
        got, middle = cut.module(x), depthwise(expand(x))
        if same(got, project(middle * mask[:, None, None])):
            return None
    return "the sizes are right, the values are not: keep in every tensor the channels where the mask is True"


@task(points=1)
def my_flops(ask):
    cases = [(16, 64, 112), (24, 72, 56), (40, 120, 28)]
    numbers = {64: 1, 72: 2, 120: 4}
    parts = [
        [row for row in dense_costs() if row["name"].startswith(f"blocks.{numbers[n]}.expand")] for _, n, _ in cases
    ]
    right = [sum(row["flops"] for row in rows) for rows in parts]
    known = {
        "the convolution alone: BatchNorm and ReLU6 cost 3 more per output": [rows[0]["macs"] for rows in parts],
        "per pixel: there are size·size of them": [f / size**2 for f, (_, _, size) in zip(right, cases)],
        "ReLU6 is missing: 1 per output": [f - n * size**2 for f, (_, n, size) in zip(right, cases)],
        "BatchNorm is missing: 2 per output": [f - 2 * n * size**2 for f, (_, n, size) in zip(right, cases)],
        "3 per filter is not enough: BatchNorm and ReLU6 work on every pixel": [
            rows[0]["macs"] + 3 * n for rows, (_, n, _) in zip(parts, cases)
        ],
    }
    return mistake(
        [ask(*case) for case in cases], right, known, "outputs are n·size·size; what does each of them cost?"
    )

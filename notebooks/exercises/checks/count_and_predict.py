"""Checks of the sheet count_and_predict."""

import torch

import mnv3nb
from mnv3nb.model import InvertedResidual

from .networks import (
    TWO_FILTERS,
    dense_costs,
    random_scores,
)
from .verdict import form, mistake, task


@task(points=2)
def my_parameters(ask):
    cases = [(16, 64, 24, 3, 0), (40, 120, 40, 5, 32), (112, 672, 160, 5, 168)]
    right = []
    for c, n, out, k, hidden in cases:
        row = (k, n, out, hidden > 0, "RE", 1)
        right.append(mnv3nb.count_parameters(InvertedResidual(c, row, n, hidden)))
    pairs = list(zip(right, cases))
    known = {
        "the three BatchNorms are missing: γ and β for each of their channels": [
            p - 4 * n - 2 * out for p, (_, n, out, _, _) in pairs
        ],
        "running mean and variance are no parameters: no gradient trains them": [
            p + 4 * n + 2 * out for p, (_, n, out, _, _) in pairs
        ],
        "a depthwise filter sees one channel: k·k weights, not k·k·n": [
            p + k * k * n * (n - 1) for p, (_, n, _, k, _) in pairs
        ],
        "the two convolutions of squeeze-and-excitation have biases": [
            p - (n + h) * (h > 0) for p, (_, n, _, _, h) in pairs
        ],
        "squeeze-and-excitation is missing": [p - (2 * n * h + n + h) * (h > 0) for p, (_, n, _, _, h) in pairs],
    }
    hint = "add up expansion, depthwise, squeeze, excite, projection, and three BatchNorms; test with the block's own count"
    return mistake([ask(*case) for case in cases], right, known, hint)


@task(points=2)
def my_block_flops(ask):
    cases = [(16, 16, 16, 3, 112, 1), (16, 64, 24, 3, 112, 2), (24, 72, 24, 3, 56, 1)]  # blocks 0 to 2
    rows = [[row for row in dense_costs() if row["name"].startswith(f"blocks.{i}.")] for i in range(3)]
    early = [[row["flops"] * ("expand" in row["name"]) for row in parts] for parts in rows]
    flops = [sum(row["flops"] for row in parts) for parts in rows]
    late = [total - sum(part) for total, part in zip(flops, early)]
    strides, outputs = [case[-1] for case in cases], [case[2] * (case[4] // case[5]) ** 2 for case in cases]
    known = {
        "these are multiply-accumulates alone: the paper adds 2 for each BatchNorm output and 1 for each ReLU6 output": [
            sum(row["macs"] for row in parts) for parts in rows
        ],
        "from the depthwise convolution on the map is smaller: size / stride on each side": [
            sum(part) + rest * s * s for part, rest, s in zip(early, late, strides)
        ],
        "the expansion comes before the stride: its map has the full size": [
            sum(part) / s**2 + rest for part, rest, s in zip(early, late, strides)
        ],
        "no activation follows the projection": [total + n for total, n in zip(flops, outputs)],
    }
    hint = (
        "for each of the three convolutions: outputs · (multiply-accumulates per output + 2, + 1 where ReLU6 follows)"
    )
    return mistake([ask(*case) for case in cases], flops, known, hint)


@task(points=1)
def my_shares(ask):
    k, right = TWO_FILTERS, mnv3nb.filter_sparsity(TWO_FILTERS[:, :, None, None]).tolist()
    known = {
        "|k| ≥ M: a weight that equals the mean counts": (k.abs() > k.abs().mean()).float().mean(1).tolist(),
        "take magnitudes: −2 is as large as 2": (k >= k.abs().mean()).float().mean(1).tolist(),
        "M is the mean over the whole layer, not over the filter": (
            (k.abs() >= k.abs().mean(1, keepdim=True)).float().mean(1).tolist()
        ),
        "a share, in [0, 1]: divide by the number of weights of a filter": [3 * share for share in right],
    }
    return mistake([ask()], [right], {m: [a] for m, a in known.items()}, "first M, the mean of all six magnitudes")


@task(points=1)
def my_threshold(ask):
    cases = [(random_scores(seed=seed), rate) for seed, rate in ((0, 0.5), (1, 0.3), (2, 0.77))]
    ranked = [torch.cat(scores).sort().values for scores, _ in cases]
    places = [int(len(flat) * rate) for flat, (_, rate) in zip(ranked, cases)]
    known = {
        "between two scores: t is itself one of them, no interpolation": [
            flat.quantile(rate) for flat, (_, rate) in zip(ranked, cases)
        ],
        "sort ascending: the smallest scores are removed": [flat.flip(0)[i] for flat, i in zip(ranked, places)],
        "one place too early: places are counted from 0": [flat[i - 1] for flat, i in zip(ranked, places)],
        "one threshold for all layers together, not a mean of theirs": [
            torch.stack([mnv3nb.threshold([s], rate) * torch.ones(()) for s in scores]).mean() for scores, rate in cases
        ],
    }
    right = [mnv3nb.threshold(scores, rate) for scores, rate in cases]
    return mistake([ask(*case) for case in cases], right, known, "one list of all scores, sorted; t is at ⌊n·rate⌋")


@task(points=2)
def my_widths(ask):
    cases = [(random_scores(seed=seed), rate) for seed, rate in ((3, 0.5), (4, 0.25), (5, 0.6))]
    right = [[int(mask.sum()) for mask in mnv3nb.keep_masks(*case)] for case in cases]
    known = {
        "these are the filters removed, not those left": [
            [len(s) - width for s, width in zip(scores, widths)] for (scores, _), widths in zip(cases, right)
        ],
        "the threshold itself goes, too: keep m > t": [
            [int((s >= mnv3nb.threshold(scores, rate)).sum()) for s in scores] for scores, rate in cases
        ],
        "one threshold for the network does not cut the same share of every layer": [
            [int(mask.sum()) for s in scores for mask in mnv3nb.keep_masks([s], rate)] for scores, rate in cases
        ],
        "the same share of every layer: nothing was compared between layers": [
            [round(len(s) * (1 - rate)) for s in scores] for scores, rate in cases
        ],
    }
    got = [ask(*case) for case in cases]
    if wrong := form(got[0], right[0]):
        return wrong
    hint = f"in the first case {sum(right[0])} filters stay in all, you keep {sum(got[0])}; layer by layer: m > t"
    return mistake(got, right, known, hint)


@task(points=2)
def my_shapes(ask):
    cases = [(16, 64, 24, 3, 40), (24, 72, 24, 3, 9)]
    right, swapped = [], []
    for c, n, out, k, kept in cases:
        block = InvertedResidual(c, (k, n, out, False, "RE", 1), n, 0)
        layers = mnv3nb.blocks(mnv3nb.prune(block, [torch.arange(n) < kept]))[0]
        right.append([tuple(conv.weight.shape) for conv in (layers.expand, layers.depthwise, layers.project)])
        swapped.append([(kept, c, 1, 1), (kept, 1, k, k), (kept, n, 1, 1)])
    known = {
        "a depthwise filter has one input channel: (…, 1, k, k)": [
            [e, (kept, kept, k, k), p] for (e, _, p), (_, _, _, k, kept) in zip(right, cases)
        ],
        "the projection loses inputs, its second dimension; its outputs feed the next block": swapped,
        "`kept` is the number that stays": [
            [(n - kept, c, 1, 1), (n - kept, 1, k, k), (out, n - kept, 1, 1)] for c, n, out, k, kept in cases
        ],
        "the inputs of the expansion come from the block before and stay": [
            [(n, kept, 1, 1), d, p] for (_, d, p), (_, n, _, _, kept) in zip(right, cases)
        ],
        "the projection still takes all channels: those of removed filters are gone": [
            [e, d, (out, n, 1, 1)] for (e, d, _), (_, n, out, _, _) in zip(right, cases)
        ],
    }
    hint = "three shapes: expansion (outputs, inputs, 1, 1), depthwise (outputs, 1, k, k), projection (outputs, inputs, 1, 1)"
    return mistake([ask(*case) for case in cases], right, known, hint)

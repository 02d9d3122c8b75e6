"""Checks of the sheet count_and_predict."""

import torch

import mnv3nb
from mnv3nb.model import InvertedResidual

from .networks import TWO_FILTERS, dense_costs, random_scores
from .verdict import ask_each, diagnose, task, wrong_form


@task(points=2)
def my_parameters(ask):
    cases = [(16, 64, 24, 3, 0), (40, 120, 40, 5, 32), (112, 672, 160, 5, 168)]

    def correct(c, n, out, k, hidden):
        block = InvertedResidual(c, (k, n, out, hidden > 0, "RE", 1), n, hidden)
        return mnv3nb.count_parameters(block)

    def without_batch_norms(c, n, out, k, hidden):
        return correct(c, n, out, k, hidden) - 4 * n - 2 * out

    def with_running_statistics(c, n, out, k, hidden):
        return correct(c, n, out, k, hidden) + 4 * n + 2 * out

    def full_depthwise_filters(c, n, out, k, hidden):
        return correct(c, n, out, k, hidden) - k * k * n + k * k * n * n

    def without_se_biases(c, n, out, k, hidden):
        biases = n + hidden if hidden else 0
        return correct(c, n, out, k, hidden) - biases

    def without_se(c, n, out, k, hidden):
        squeeze_and_excite = 2 * n * hidden + n + hidden if hidden else 0
        return correct(c, n, out, k, hidden) - squeeze_and_excite

    mistakes = {
        "The three BatchNorms are missing: each has γ and β for each of its channels.": without_batch_norms,
        "Running mean and variance are not parameters, because no gradient trains them.": with_running_statistics,
        "A depthwise filter sees one channel: it has k·k weights, not k·k·n.": full_depthwise_filters,
        "The two convolutions of squeeze-and-excitation have biases. Add them.": without_se_biases,
        "The parameters of squeeze-and-excitation are missing.": without_se,
    }
    hint = (
        "The numbers differ from the blocks' own counts. "
        "Add up expansion, depthwise, squeeze, excite, projection and three BatchNorms."
    )
    answers = ask_each(ask, cases)
    return diagnose(answers, cases, correct, mistakes, hint)


@task(points=2)
def my_block_flops(ask):
    blocks_0_to_2 = [(16, 16, 16, 3, 112, 1), (16, 64, 24, 3, 112, 2), (24, 72, 24, 3, 56, 1)]

    def layers(case):
        number = blocks_0_to_2.index(case)
        return [row for row in dense_costs() if row["name"].startswith(f"blocks.{number}.")]

    def expansion(*case):
        return sum(row["flops"] for row in layers(case) if "expand" in row["name"])

    def behind_the_expansion(*case):
        return sum(row["flops"] for row in layers(case) if "expand" not in row["name"])

    def correct(*case):
        return expansion(*case) + behind_the_expansion(*case)

    def macs_only(*case):
        return sum(row["macs"] for row in layers(case))

    def full_size_everywhere(*case):
        stride = case[-1]
        return expansion(*case) + behind_the_expansion(*case) * stride**2

    def small_size_everywhere(*case):
        stride = case[-1]
        return expansion(*case) / stride**2 + behind_the_expansion(*case)

    def activation_behind_projection(c, n, out, k, size, stride):
        outputs = out * (size // stride) ** 2
        return correct(c, n, out, k, size, stride) + outputs

    mistakes = {
        "These are multiply-accumulates alone. The paper adds 2 for each BatchNorm output and 1 for each ReLU6 "
        "output.": macs_only,
        "From the depthwise convolution on, the map is smaller: its side is size / stride.": full_size_everywhere,
        "The expansion comes before the stride: its map has the full size.": small_size_everywhere,
        "You count an activation behind the projection, but no activation follows it.": activation_behind_projection,
    }
    hint = (
        "The numbers differ from the paper's count. For each of the three convolutions take "
        "outputs · (multiply-accumulates per output + 2), and 1 more per output where a ReLU6 follows."
    )
    answers = ask_each(ask, blocks_0_to_2)
    return diagnose(answers, blocks_0_to_2, correct, mistakes, hint)


@task(points=1)
def my_shares(ask):
    weights = TWO_FILTERS
    magnitudes = weights.abs()

    def correct():
        return mnv3nb.filter_sparsity(weights[:, :, None, None]).tolist()

    def above_the_mean():
        return (magnitudes > magnitudes.mean()).float().mean(1).tolist()

    def signed_weights():
        return (weights >= magnitudes.mean()).float().mean(1).tolist()

    def mean_of_each_filter():
        return (magnitudes >= magnitudes.mean(1, keepdim=True)).float().mean(1).tolist()

    def counts():
        return (magnitudes >= magnitudes.mean()).float().sum(1).tolist()

    mistakes = {
        "The condition is |k| ≥ M: a weight whose magnitude equals the mean counts.": above_the_mean,
        "Compare magnitudes: −2 is as large as 2.": signed_weights,
        "M is the mean over the whole layer, not over each filter.": mean_of_each_filter,
        "S is a share, in [0, 1]: divide by the number of weights of a filter.": counts,
    }
    hint = "These are not the shares. First compute M, the mean of all six magnitudes."
    return diagnose([ask()], [()], correct, mistakes, hint)


@task(points=1)
def my_threshold(ask):
    cases = [
        (random_scores(seed=0), 0.5),
        (random_scores(seed=1), 0.3),
        (random_scores(seed=2), 0.77),
    ]

    def ranking(scores):
        return torch.cat(scores).sort().values

    def interpolated(scores, rate):
        return ranking(scores).quantile(rate)

    def sorted_descending(scores, rate):
        ranked = ranking(scores)
        return ranked.flip(0)[int(len(ranked) * rate)]

    def counted_from_one(scores, rate):
        ranked = ranking(scores)
        return ranked[int(len(ranked) * rate) - 1]

    def mean_over_layers(scores, rate):
        return sum(mnv3nb.threshold([layer], rate) for layer in scores) / len(scores)

    mistakes = {
        "This value lies between two scores. t is itself a score: do not interpolate.": interpolated,
        "Sort ascending, because the smallest scores are removed.": sorted_descending,
        "This is one place too early: places are counted from 0.": counted_from_one,
        "This is the mean of the layers' thresholds. Take one threshold for all layers together.": mean_over_layers,
    }
    hint = "This is not t. Sort all scores in one list; t is at place ⌊n·rate⌋."
    answers = ask_each(ask, cases)
    return diagnose(answers, cases, mnv3nb.threshold, mistakes, hint)


@task(points=2)
def my_widths(ask):
    cases = [
        (random_scores(seed=3), 0.5),
        (random_scores(seed=4), 0.25),
        (random_scores(seed=5), 0.6),
    ]

    def correct(scores, rate):
        return [int(mask.sum()) for mask in mnv3nb.keep_masks(scores, rate)]

    def removed_filters(scores, rate):
        return [len(layer) - width for layer, width in zip(scores, correct(scores, rate))]

    def threshold_stays(scores, rate):
        t = mnv3nb.threshold(scores, rate)
        return [int((layer >= t).sum()) for layer in scores]

    def threshold_of_each_layer(scores, rate):
        return [int((layer > mnv3nb.threshold([layer], rate)).sum()) for layer in scores]

    def equal_shares(scores, rate):
        return [round(len(layer) * (1 - rate)) for layer in scores]

    mistakes = {
        "These are the numbers of filters removed. Return the numbers that stay.": removed_filters,
        "The filter at the threshold is removed, too: keep m > t.": threshold_stays,
        "You take a threshold for each layer. One threshold for the network removes different shares of the "
        "layers.": threshold_of_each_layer,
        "You remove the same share of every layer. Compare the filters of all layers with each other.": equal_shares,
    }
    answers = ask_each(ask, cases)
    expected = correct(*cases[0])
    form_message = wrong_form(answers[0], expected)
    if form_message:
        return form_message
    hint = (
        f"In the first case you keep {sum(answers[0])} filters in all, but {sum(expected)} stay. "
        "Count m > t layer by layer."
    )
    return diagnose(answers, cases, correct, mistakes, hint)


@task(points=2)
def my_shapes(ask):
    cases = [(16, 64, 24, 3, 40), (24, 72, 24, 3, 9)]

    def correct(c, n, out, k, kept):
        module = InvertedResidual(c, (k, n, out, False, "RE", 1), n, 0)
        pruned = mnv3nb.prune(module, [torch.arange(n) < kept])
        (block,) = mnv3nb.blocks(pruned)
        return [tuple(layer.weight.shape) for layer in (block.expand, block.depthwise, block.project)]

    def full_depthwise_filters(c, n, out, k, kept):
        return [(kept, c, 1, 1), (kept, kept, k, k), (out, kept, 1, 1)]

    def projection_loses_outputs(c, n, out, k, kept):
        return [(kept, c, 1, 1), (kept, 1, k, k), (kept, n, 1, 1)]

    def kept_is_removed(c, n, out, k, kept):
        return correct(c, n, out, k, n - kept)

    def expansion_loses_inputs(c, n, out, k, kept):
        return [(n, kept, 1, 1), (kept, 1, k, k), (out, kept, 1, 1)]

    def projection_unchanged(c, n, out, k, kept):
        return [(kept, c, 1, 1), (kept, 1, k, k), (out, n, 1, 1)]

    mistakes = {
        "A depthwise filter has one input channel: its shape ends in (1, k, k).": full_depthwise_filters,
        "The projection loses inputs, its second dimension. Its outputs feed the next block.": projection_loses_outputs,
        "`kept` is the number of filters that stay, not the number removed.": kept_is_removed,
        "The inputs of the expansion come from the block before and stay.": expansion_loses_inputs,
        "The projection still takes all channels. Those of removed filters are gone.": projection_unchanged,
    }
    hint = (
        "These are not the shapes. Return three: expansion (outputs, inputs, 1, 1), depthwise (outputs, 1, k, k) and "
        "projection (outputs, inputs, 1, 1)."
    )
    answers = ask_each(ask, cases)
    return diagnose(answers, cases, correct, mistakes, hint)

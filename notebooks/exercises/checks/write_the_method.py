"""Checks of the sheet write_the_method."""

import torch
from torch import Tensor

import mnv3nb
from mnv3nb import paper

from .networks import TWO_FILTERS, copied, dense_costs, lively_network, random_block, random_scores
from .verdict import ask_each, diagnose, same, task, wrong_form

WEIGHTS_OF_A_FILTER = (1, 2, 3)  # dimensions of a convolution's weight


@task(points=2)
def my_sparsity(ask):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-4, 5, (8, 4, 3, 3), generator=generator).float()
    weight[0] *= 3  # so that the filters' means differ
    cases = [(TWO_FILTERS[:, :, None, None],), (weight,)]

    def share(counted):
        return counted.float().mean(WEIGHTS_OF_A_FILTER)

    def mean_of_each_filter(weight):
        magnitude = weight.abs()
        return share(magnitude >= magnitude.mean(WEIGHTS_OF_A_FILTER, keepdim=True))

    def above_the_mean(weight):
        return share(weight.abs() > weight.abs().mean())

    def signed_weights(weight):
        return share(weight >= weight.abs().mean())

    def mean_of_signed_weights(weight):
        return share(weight.abs() >= weight.mean())

    def below_the_mean(weight):
        return share(weight.abs() < weight.abs().mean())

    def counts(weight):
        return (weight.abs() >= weight.abs().mean()).float().sum(WEIGHTS_OF_A_FILTER)

    mistakes = {
        "You take the mean of each filter. M is the layer's mean, not the filter's.": mean_of_each_filter,
        "The condition is |k| ≥ M: weights that equal the mean count.": above_the_mean,
        "You compare signed weights with M. Compare magnitudes instead.": signed_weights,
        "M is the mean of the magnitudes. The mean of the signed weights is almost 0.": mean_of_signed_weights,
        "This is the share of the other weights. S counts those that reach the mean.": below_the_mean,
        "S is a share, not a count: divide by the number of weights of a filter.": counts,
    }
    hint = "These values are not S. Compare each |k| with M, then average over the weights of each filter."
    return diagnose(ask_each(ask, cases), cases, mnv3nb.filter_sparsity, mistakes, hint)


@task(points=1)
def my_scores(ask):
    cases = [(lively_network(1),)]

    def gamma_alone(model):
        return mnv3nb.score(model, "gamma")

    def sparsity_alone(model):
        return mnv3nb.score(model, "sparsity")

    def signed_gamma(model):
        blocks = mnv3nb.blocks(model)
        return [b.expand_bn.weight.detach() * s for b, s in zip(blocks, sparsity_alone(model))]

    def sparsity_of_depthwise(model):
        blocks = mnv3nb.blocks(model)
        return [b.expand_bn.weight.detach().abs() * mnv3nb.filter_sparsity(b.depthwise.weight.detach()) for b in blocks]

    def gamma_of_depthwise(model):
        blocks = mnv3nb.blocks(model)
        return [b.depthwise_bn.weight.detach().abs() * s for b, s in zip(blocks, sparsity_alone(model))]

    mistakes = {
        "This is |γ| alone: S is missing.": gamma_alone,
        "This is S alone: |γ| is missing.": sparsity_alone,
        "γ can be negative: take |γ|.": signed_gamma,
        "Take S of the expansion's filters, not of the depthwise ones.": sparsity_of_depthwise,
        "Take γ of the BatchNorm behind the expansion, not behind the depthwise convolution.": gamma_of_depthwise,
    }
    hint = "These values are not m. Return one tensor per block: |γ| times S, filter by filter."
    (answer,) = ask_each(ask, cases)
    if isinstance(answer, list):
        answer = [score.detach() if isinstance(score, Tensor) else score for score in answer]
    return diagnose([answer], cases, mnv3nb.score, mistakes, hint)


@task(points=2)
def my_masks(ask):
    cases = [(random_scores(mnv3nb.DENSE_WIDTHS), 0.5), (random_scores(seed=6), 0.25)]

    def threshold_stays(scores, rate):
        t = mnv3nb.threshold(scores, rate)
        return [layer >= t for layer in scores]

    def upside_down(scores, rate):
        return [~mask for mask in mnv3nb.keep_masks(scores, rate)]

    def threshold_of_each_layer(scores, rate):
        return [layer > mnv3nb.threshold([layer], rate) for layer in scores]

    def rate_as_threshold(scores, rate):
        return [layer > rate for layer in scores]

    mistakes = {
        "The filter at the threshold is removed as well: keep m > t, which is 2,507 filters at 50 %.": threshold_stays,
        "The masks are upside down: True means that a filter is kept.": upside_down,
        "You take a threshold for each layer. Take one threshold for all layers, not one for each.": (
            threshold_of_each_layer
        ),
        "You use the rate as the threshold. The rate is a share of filters, not the threshold.": rate_as_threshold,
    }
    answers = ask_each(ask, cases)
    form_message = wrong_form(answers[0], mnv3nb.keep_masks(*cases[0]))
    if form_message:
        return form_message
    for mask in answers[0]:
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            return "Masks are bool tensors, one per layer. A comparison of tensors gives one."
    kept = sum(int(mask.sum()) for mask in answers[0])
    hint = f"You keep {kept:,} of 5,016 filters, and the paper keeps {paper.TABLE_5.after.sum():,}. Keep m > t."
    return diagnose(answers, cases, mnv3nb.keep_masks, mistakes, hint)


@task(points=3)
def my_cut(ask):
    whole = random_block(64)
    mask = torch.arange(64) % 3 > 0
    width = int(mask.sum())
    cut = ask(copied(whole), mask)
    if not isinstance(cut, mnv3nb.Block):
        return f"The function returns a value of type {type(cut).__name__}. Return the block, with smaller layers."

    lengths = {}  # of every tensor that has one entry per channel
    for part in ("expand", "expand_bn", "depthwise", "depthwise_bn"):
        for name, tensor in getattr(cut, part).state_dict().items():
            if tensor.ndim:
                lengths[f"{part}.{name}"] = len(tensor)
    outputs, inputs = cut.project.weight.shape[:2]

    if inputs == 64 and all(length == 64 for length in lengths.values()):
        return "Nothing is smaller than before. Replace the tensors (`conv.weight.data = ...`); zeros are not a cut."
    if outputs != 24:
        return "The projection must keep its 24 outputs and lose inputs: slice its second dimension."
    unchanged = [name for name, length in lengths.items() if length != width]
    if unchanged:
        return f"{width} channels must stay, but not yet in {', '.join(unchanged)}."
    if inputs != width:
        return f"The projection takes {inputs} channels, but {width} stay: slice its second dimension."
    if cut.depthwise.groups != width:
        return (
            f"The depthwise convolution has {cut.depthwise.groups} groups. It needs one for each of {width} channels."
        )

    images = torch.randn(2, 16, 9, 9, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        channels = whole.module.depthwise(whole.module.expand(images))
        expected = whole.module.project(channels * mask[:, None, None])
        if same(cut.module(images), expected):
            return None
    return "The sizes are right, the values are not. In every tensor keep the channels where the mask is True."


@task(points=1)
def my_flops(ask):
    cases = [(16, 64, 112), (24, 72, 56), (40, 120, 28)]
    blocks_with_width = {64: 1, 72: 2, 120: 4}

    def layers(n):
        name = f"blocks.{blocks_with_width[n]}.expand"
        return [row for row in dense_costs() if row["name"].startswith(name)]

    def correct(c, n, size):
        return sum(row["flops"] for row in layers(n))

    def convolution_alone(c, n, size):
        return layers(n)[0]["macs"]

    def per_pixel(c, n, size):
        return correct(c, n, size) / size**2

    def without_relu6(c, n, size):
        return correct(c, n, size) - n * size**2

    def without_batch_norm(c, n, size):
        return correct(c, n, size) - 2 * n * size**2

    def rest_per_filter(c, n, size):
        return convolution_alone(c, n, size) + 3 * n

    mistakes = {
        "This is the convolution alone. BatchNorm and ReLU6 cost 3 more per output.": convolution_alone,
        "These are the FLOPs per pixel, and there are size·size pixels.": per_pixel,
        "ReLU6 is missing: add 1 per output.": without_relu6,
        "BatchNorm is missing: add 2 per output.": without_batch_norm,
        "3 per filter is not enough, because BatchNorm and ReLU6 work on every pixel.": rest_per_filter,
    }
    hint = "This is not the paper's count. There are n·size·size outputs: what does each of them cost?"
    return diagnose(ask_each(ask, cases), cases, correct, mistakes, hint)

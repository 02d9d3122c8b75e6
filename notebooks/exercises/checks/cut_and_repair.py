"""Checks of the sheet cut_and_repair."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mnv3nb
from mnv3nb.blocks import batch_norms
from mnv3nb.data.batches import to_input
from mnv3nb.model import InvertedResidual

from .networks import IMAGE_SIZE, digits, lively_network, random_block, random_scores, shake, small_network
from .verdict import ask_each, diagnose, same, task


@task(points=2)
def my_collapse(ask):
    cases = [(random_scores(seed=7),), (mnv3nb.score(lively_network(2)),)]

    def filters(scores):
        return sum(len(layer) for layer in scores)

    def loses_first_filter(scores):
        everything = torch.cat(scores)
        return [int((everything < layer.min()).sum()) / len(everything) for layer in scores]

    def ranked_within_layers(scores):
        return [1 - 1 / len(layer) for layer in scores]

    def counted_from_one(scores):
        return [rate + 1 / filters(scores) for rate in mnv3nb.layer_collapse_rates(scores)]

    def places(scores):
        return [rate * filters(scores) for rate in mnv3nb.layer_collapse_rates(scores)]

    def share_left(scores):
        return [1 - rate for rate in mnv3nb.layer_collapse_rates(scores)]

    mistakes = {
        "At this rate a block loses its first filter. It is empty when its best one goes.": loses_first_filter,
        "Inside its own block the best filter is always last. Rank all filters of the network together.": (
            ranked_within_layers
        ),
        "This is one place too far: the filter at place ⌊n·rate⌋, counted from 0, goes.": counted_from_one,
        "A rate is a share: divide the place by the number of all filters.": places,
        "This is the share of filters that is left. Return the share that is gone.": share_left,
    }
    hint = (
        "These are not the rates. At which place of the ranking of all filters is the block's best one? "
        "Try `keep_masks(..., min_width=0)`."
    )
    return diagnose(ask_each(ask, cases), cases, mnv3nb.layer_collapse_rates, mistakes, hint)


@task(points=2)
def my_constants(ask):
    cases = [(torch.tensor([-4.0, -1.0, 0.0, 0.5, 2.0, 7.0]),)]

    def emitted(betas, activation):
        """What an expansion with γ = 0 makes of any image."""
        width = len(betas)
        module = InvertedResidual(16, (3, width, width, False, activation, 1), width, 0).eval()
        bn = module.expand[1]
        bn.weight.data.zero_()
        bn.bias.data = betas.clone()
        with torch.no_grad():
            return module.expand(torch.randn(1, 16, 2, 2))[0, :, 0, 0]

    def correct(betas):
        return [emitted(betas, "RE"), emitted(betas, "HS")]

    def zeros(betas):
        return [torch.zeros_like(betas), torch.zeros_like(betas)]

    def without_activation(betas):
        return [betas, betas]

    def relu_without_limit(betas):
        return [betas.relu(), F.hardswish(betas)]

    def swish(betas):
        return [F.relu6(betas), F.silu(betas)]

    def hard_sigmoid(betas):
        return [F.relu6(betas), F.hardsigmoid(betas)]

    def relu6_twice(betas):
        return [F.relu6(betas), F.relu6(betas)]

    mistakes = {
        "γ = 0 does not make a channel 0, because BatchNorm still adds β.": zeros,
        "β is what BatchNorm gives. It then goes through the activation.": without_activation,
        "ReLU6 ends at 6.": relu_without_limit,
        "h-swish is x·ReLU6(x + 3)/6, not x·sigmoid(x).": swish,
        "This is the hard sigmoid. h-swish multiplies it by x.": hard_sigmoid,
        "The second tensor must use h-swish, the activation of the later blocks: it is not ReLU6.": relu6_twice,
    }
    hint = (
        "These are not the two constants. BatchNorm gives γ·x̂ + β: what is left of it at γ = 0, and what do ReLU6 and "
        "h-swish make of that?"
    )
    return diagnose(ask_each(ask, cases), cases, correct, mistakes, hint)


@task(points=3)
def my_running_mean(ask):
    mask = torch.arange(24) % 3 > 0
    block = random_block(24, seed=3)
    block.depthwise_bn.weight.data[~mask] = 0
    weight = block.project.weight.detach()[:, :, 0, 0]
    beta = block.depthwise_bn.bias.detach()
    constants = beta.clamp(0, 6)
    missing = weight[:, ~mask] @ constants[~mask]
    mean = block.project_bn.running_mean.clone()

    answer = ask(block, mask)
    if not same(block.project_bn.running_mean, mean):
        return "You changed the mean of the block given. Return a new tensor; the block still works with its own."
    if isinstance(answer, Tensor) and answer.shape == mean.shape:
        (folded,) = mnv3nb.blocks(mnv3nb.prune(block.module, [mask]))
        folded.project_bn.running_mean = answer.detach()
        images = torch.randn(2, 16, 9, 9, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            if torch.allclose(folded.module(images), block.module(images), atol=1e-4):
                return None

    mistakes = {
        "The shift has the wrong sign: BatchNorm subtracts the mean, so what is missing makes it smaller.": (
            lambda: mean + missing
        ),
        "Fold the constants of the removed channels, not of those that stay.": (
            lambda: mean - weight[:, mask] @ constants[mask]
        ),
        "β goes through ReLU6 before it reaches the projection.": lambda: mean - weight[:, ~mask] @ beta[~mask],
        "This is the change alone. Add it to the running mean of the projection's BatchNorm.": lambda: -missing,
        "This is what is missing. Subtract it from the running mean of the projection's BatchNorm.": lambda: missing,
        "The mean is unchanged: nothing is folded.": lambda: mean,
    }
    hint = (
        "With this mean the cut block does not compute what the whole block does. Each removed channel adds "
        "(its column of the projection) · (its constant) to the outputs."
    )
    return diagnose([answer], [()], lambda: mean - missing, mistakes, hint)


@task(points=3)
def my_reestimate(ask):
    images = digits().train_images[:160]
    batches = [to_input(part, IMAGE_SIZE) for part in images.split(40)]
    start = small_network(5).eval()
    shake(start)

    def correct():
        model = copy.deepcopy(start)
        mnv3nb.reestimate_batchnorm(model, images, IMAGE_SIZE, batch_size=40)
        return _statistics(model)

    def moving_average(reset, momentum):
        model = copy.deepcopy(start).train()
        for bn in batch_norms(model):
            bn.momentum = momentum
            if reset:
                bn.reset_running_stats()
        with torch.no_grad():
            for batch in batches:
                model(batch)
        return _statistics(model)

    def only_reset():
        model = copy.deepcopy(start)
        for bn in batch_norms(model):
            bn.reset_running_stats()
        return _statistics(model)

    model = ask(copy.deepcopy(start), batches)
    if not isinstance(model, nn.Module):
        return f"The function returns a value of type {type(model).__name__}. Return the network."
    if any(module.training for module in model.modules()):
        return "The network is in train mode. It must be in eval mode when it comes back."
    if not same([p.detach() for p in model.parameters()], [p.detach() for p in start.parameters()]):
        return "Weights, γ and β must stay as they are: use no optimizer, only forward passes."

    mistakes = {
        "The statistics are the old ones: in eval mode a BatchNorm uses them and does not measure.": (
            lambda: _statistics(start)
        ),
        "The statistics are reset, but nothing was measured. Run the batches in train mode.": only_reset,
        "The statistics are still partly the old ones. Call reset_running_stats() first, and give all batches equal "
        "weight.": lambda: moving_average(reset=False, momentum=0.1),
        "A moving average forgets the first batches. momentum=None gives all batches equal weight.": (
            lambda: moving_average(reset=True, momentum=0.1)
        ),
        "Only the last batch counts. momentum=None gives all batches equal weight.": (
            lambda: moving_average(reset=True, momentum=1.0)
        ),
    }
    hint = (
        "The statistics are not the averages over the batches. Set reset_running_stats() and momentum=None for each "
        "BatchNorm, then run all batches in train mode, without gradients."
    )
    return diagnose([_statistics(model)], [()], correct, mistakes, hint)


def _statistics(model: nn.Module) -> list[Tensor]:
    """Running mean and variance of every BatchNorm."""
    statistics = []
    for bn in batch_norms(model):
        statistics.append(bn.running_mean)
        statistics.append(bn.running_var)
    return statistics

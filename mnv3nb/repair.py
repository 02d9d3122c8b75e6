"""Repairs without fine-tuning: compensation for the constants of removed channels, BatchNorm measured anew."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from .blocks import Block, blocks, inputs_of
from .costs import layer_costs
from .data.batches import Dataset, batches, to_input
from .pruning import strongest_hidden


@torch.no_grad()
def fold_bias(dense: nn.Module, pruned: nn.Module, masks: Sequence[Tensor], image_size: int) -> nn.Module:
    """A copy of `pruned` = prune(dense, masks) that compensates for the removed channels; for use without fine-tuning.

    At γ = 0 a channel of the expansion is the constant act(β). What becomes of it in the depthwise convolution and SE,
    for images of `image_size` pixels, is added to the BatchNorm after the projection and to SE's biases.

    Exact for γ = 0: the input of SE, and the projection's mean over the map, or all of it where the zero border of the
    depthwise convolution does not reach. Approximate: the border's deviation from that mean; γ ≠ 0; with SE, the scale
    of removed channels and the output of removed hidden channels, both taken at the mean input of SE.
    """
    folded = copy.deepcopy(pruned)
    names = {module: name for name, module in dense.named_modules()}
    sides = {row["name"]: row["shape"][-1] for row in layer_costs(copy.deepcopy(dense).float(), image_size)}
    for old, new, mask in zip(blocks(dense), blocks(folded), masks, strict=True):
        gone = ~mask.to(old.expand.weight.device)
        to_squeeze, to_excite, to_project = _mean_inputs_without(old, gone, sides[names[old.expand]])
        if new.squeeze:
            kept = strongest_hidden(old, mask, new.hidden)
            lost = torch.ones_like(to_excite).index_fill_(0, kept, 0)
            new.squeeze.bias += (old.squeeze.weight[:, gone, 0, 0] @ to_squeeze[gone])[kept]
            new.excite.bias += (old.excite.weight[:, :, 0, 0] @ (lost * to_excite))[~gone]
        shift = old.project.weight[:, gone, 0, 0] @ to_project[gone]
        if new.project_bn:
            new.project_bn.running_mean -= shift
        else:
            new.project.bias += shift
    return folded


def reestimate_batchnorm(
    model: nn.Module, images: Tensor, image_size: int, batch_size: int = 128, augment: str = "none"
) -> None:
    """Measure the running mean and variance of every BatchNorm anew, in place: averages over batches of `images`.

    The cheap repair after pruning: no labels, no gradients; weights, γ and β stay. `images`: uint8 (N, 3, H, W), a few
    hundred training images; a last batch of one is left out. `augment`: as in training, whose statistics these replace
    (see `mnv3nb.data.batches`); other images make other statistics. Leaves the network in eval mode.
    Raises ValueError if no batch has two images.
    """
    if min(len(images), batch_size) < 2:
        raise ValueError(f"BatchNorm needs batches of at least 2 images, got {len(images)} in batches of {batch_size}")
    device = next(model.parameters()).device
    parts = images.split(batch_size)
    if augment != "none":
        labels = torch.zeros(len(images), dtype=torch.long, device=images.device)
        data = Dataset(images, labels, images, labels, ())
        parts = (x for x, _ in batches(data, batch_size, torch.Generator().manual_seed(0), augment))
    update_bn((to_input(x.to(device), image_size) for x in parts if len(x) > 1), model)
    model.eval()


def _mean_inputs_without(block: Block, gone: Tensor, side: int) -> list[Tensor | None]:
    """Mean input per channel of squeeze, excite (None without SE) and projection while the channels `gone` are constant.

    In a copy of the block their γ is 0, so that they are act(β) on a map of `side` pixels, whatever the input.
    """
    (block,) = blocks(copy.deepcopy(block.module).eval())
    block.expand_bn.weight[gone] = 0
    x = block.expand.weight.new_zeros(1, block.expand.in_channels, side, side)
    if not block.squeeze:
        return [None, None, *_mean_inputs(block, x, block.project)]
    typical = block.depthwise.register_forward_hook(lambda *_: _normal_inputs(block.depthwise_bn))
    (mean,) = _mean_inputs(block, x, block.squeeze)
    typical.remove()
    gone, mean = gone[:, None, None], mean[:, None, None]
    block.squeeze.register_forward_pre_hook(lambda _, inputs: torch.where(gone, inputs[0], mean))
    return _mean_inputs(block, x, block.squeeze, block.excite, block.project)


def _normal_inputs(norm: nn.BatchNorm2d, points: int = 64) -> Tensor:
    """Inputs (points, C, 1, 1) of a BatchNorm, normally distributed with the mean and variance that it measured."""
    levels = (torch.arange(points).to(norm.running_mean) + 0.5) / points
    x = norm.running_mean + (norm.running_var + norm.eps).sqrt() * torch.special.ndtri(levels)[:, None]
    return x[:, :, None, None]


def _mean_inputs(block: Block, x: Tensor, *layers: nn.Module) -> list[Tensor]:
    """What each of `layers` takes when `block` runs on `x`: the mean per channel over batch and map."""
    return [inputs.mean((0, 2, 3)) for inputs in inputs_of(layers, block.module, x)]

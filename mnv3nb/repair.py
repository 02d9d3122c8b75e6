"""Repairs of a pruned network without fine-tuning: removed channels' constants folded in, BatchNorm re-estimated."""

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
    """A copy of `pruned` = prune(dense, masks) that compensates for the removed channels, for use without fine-tuning.

    A removed channel with γ = 0 is the constant act(β) for every image. What it would have added, on maps of images of
    `image_size` pixels, goes into SE's biases and the projection's BatchNorm mean (or bias). For γ = 0, SE's input is
    exact, and without SE so is the projection's mean over the map. Approximate are single pixels at the border, where
    zeros are padded; channels with γ ≠ 0; and SE's factors, taken at a typical input. Both networks on one device.
    Raises ValueError if a projection has neither BatchNorm nor bias, or SE no biases.
    """
    folded = copy.deepcopy(pruned)
    for block in blocks(folded):
        if block.project_bn is None and block.project.bias is None:
            lack = f"the projection of {block.name} has neither BatchNorm nor bias"
            raise ValueError(f"{lack}: there is nothing that could hold the constants of the removed channels")
        if block.squeeze is not None and (block.squeeze.bias is None or block.excite.bias is None):
            lack = f"squeeze-and-excitation of {block.name} has no biases"
            raise ValueError(f"{lack}: there is nothing that could hold the constants of the removed channels")
    sizes = _map_sizes(dense, image_size)
    for old, new, mask in zip(blocks(dense), blocks(folded), masks, strict=True):
        removed = ~mask.to(old.expand.weight.device)
        if new.squeeze is not None:
            to_squeeze, to_excite, to_project = _mean_inputs_with_se(old, removed, sizes[old.name])
            _shift_se_biases(old, new, mask, removed, to_squeeze, to_excite)
        else:
            to_project = _mean_input_without_se(old, removed, sizes[old.name])
        missing = old.project.weight[:, removed, 0, 0] @ to_project[removed]
        if new.project_bn is not None:
            new.project_bn.running_mean -= missing  # the mean of its input is lower by as much
        else:
            new.project.bias += missing
    return folded


def reestimate_batchnorm(
    model: nn.Module, images: Tensor, image_size: int, batch_size: int = 128, augment: str = "none"
) -> None:
    """Measure the running mean and variance of every BatchNorm again, in place, averaged over batches of `images`.

    The cheap repair after pruning: no labels, no gradients, and all weights stay. `images`: uint8 (N, 3, H, W), a few
    hundred training images; a last batch of one is left out. `augment`: as in training (`mnv3nb.data.batches`), because
    other images have other statistics. Leaves the network in eval mode. Raises ValueError for fewer than two images.
    """
    if min(len(images), batch_size) < 2:
        raise ValueError(f"BatchNorm needs batches of at least 2 images, got {len(images)} in batches of {batch_size}")
    device = next(model.parameters()).device
    if augment == "none":
        parts = images.split(batch_size)
    else:
        labels = torch.zeros(len(images), dtype=torch.long, device=images.device)
        data = Dataset(images, labels, images, labels, classes=())
        generator = torch.Generator().manual_seed(0)
        parts = (part for part, _ in batches(data, batch_size, generator, augment))
    update_bn((to_input(part.to(device), image_size) for part in parts if len(part) > 1), model)
    model.eval()


def _map_sizes(model: nn.Module, image_size: int) -> dict[str, tuple[int, int]]:
    """For each block, by name, height and width of its expansion's maps in pixels."""
    rows = layer_costs(model, image_size)
    shapes = {row["name"]: row["shape"] for row in rows}
    names = {module: name for name, module in model.named_modules()}
    return {block.name: shapes[names[block.expand]][1:] for block in blocks(model)}


def _shift_se_biases(
    old: Block, new: Block, mask: Tensor, removed: Tensor, to_squeeze: Tensor, to_excite: Tensor
) -> None:
    """Add to SE's two biases what is missing: the removed expansion channels, and the removed hidden channels."""
    # a 1×1 convolution is a matrix product
    from_removed = old.squeeze.weight[:, removed, 0, 0] @ to_squeeze[removed]
    kept_hidden = strongest_hidden(old, mask, new.hidden)
    new.squeeze.bias += from_removed[kept_hidden]

    hidden_is_lost = torch.ones_like(to_excite).index_fill_(0, kept_hidden, 0)
    from_lost_hidden = old.excite.weight[:, :, 0, 0] @ (hidden_is_lost * to_excite)
    new.excite.bias += from_lost_hidden[~removed]


def _mean_input_without_se(block: Block, removed: Tensor, size: tuple[int, int]) -> Tensor:
    """The projection's mean input per channel while the channels `removed` are constant, on maps of `size` pixels."""
    constant = _with_constants(block, removed)
    (to_project,) = _mean_inputs(constant, _no_signal(constant, size), constant.project)
    return to_project


def _mean_inputs_with_se(block: Block, removed: Tensor, size: tuple[int, int]) -> list[Tensor]:
    """The mean input per channel of squeeze, excite and projection while the channels `removed` are constant.

    SE takes the exact constants of the removed channels. For the others it takes their expected activation: the mean
    for normally distributed inputs with BatchNorm's running statistics. Each result: (channels,).
    """
    constant = _with_constants(block, removed)
    x = _no_signal(constant, size)

    # first pass: the mean input of SE if the depthwise outputs are normally distributed
    hook = constant.depthwise.register_forward_hook(lambda *_: _normal_inputs(constant.depthwise_bn))
    (typical,) = _mean_inputs(constant, x, constant.squeeze)
    hook.remove()

    # second pass: exact for removed channels, typical for the others
    def blend(layer: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        return torch.where(removed[:, None, None], inputs[0], typical[:, None, None])

    constant.squeeze.register_forward_pre_hook(blend)
    return _mean_inputs(constant, x, constant.squeeze, constant.excite, constant.project)


def _with_constants(block: Block, removed: Tensor) -> Block:
    """A copy of the block whose `removed` channels are the constants act(β), because their γ is 0."""
    (constant,) = blocks(copy.deepcopy(block.module).eval())
    constant.expand_bn.weight[removed] = 0
    return constant


def _no_signal(block: Block, size: tuple[int, int]) -> Tensor:
    """An input of zeros: channels at γ = 0 do not depend on it."""
    return block.expand.weight.new_zeros(1, block.expand.in_channels, *size)


def _normal_inputs(norm: nn.BatchNorm2d, points: int = 64) -> Tensor:
    """Inputs (points, C, 1, 1) of a BatchNorm: quantiles of the normal distribution with its mean and variance."""
    levels = (torch.arange(points).to(norm.running_mean) + 0.5) / points
    deviation = (norm.running_var + norm.eps).sqrt()
    x = norm.running_mean + deviation * torch.special.ndtri(levels)[:, None]
    return x[:, :, None, None]


def _mean_inputs(block: Block, x: Tensor, *layers: nn.Module) -> list[Tensor]:
    """The input of each of `layers` when the block runs on `x`: the mean per channel over batch and map."""
    return [inputs.mean((0, 2, 3)) for inputs in inputs_of(layers, block.module, x)]

"""β is not nothing: what removed channels emit, folded into what stays."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .model import InvertedResidual


@torch.no_grad()
def fold_bias_into(old: InvertedResidual, new: InvertedResidual, mask: Tensor, inner: Tensor | None, side: int) -> None:
    """What the channels that `mask` removes from `old` emit on maps of `side` pixels goes into `new`'s SE and projection."""
    gone = ~mask.to(old.expand[0].weight.device)
    constant = old.expand[2](old.expand[1].bias.clone())  # activations work in place
    emitted = old.depthwise(constant[None, :, None, None].expand(1, -1, side, side)).mean((2, 3))[0]
    if inner is not None:
        down, up = old.se.fc1.weight[:, :, 0, 0], old.se.fc2.weight[:, :, 0, 0]
        hidden = (down @ torch.where(gone, emitted, _mean_output(old.depthwise)) + old.se.fc1.bias).relu()
        scale = F.hardsigmoid(up @ hidden + old.se.fc2.bias)
        rest = torch.ones_like(hidden).index_fill_(0, inner, 0)
        new.se.fc1.bias += (down[:, gone] @ emitted[gone])[inner]
        new.se.fc2.bias += (up @ (hidden * rest))[~gone]
        emitted = emitted * scale
    new.project[1].running_mean -= old.project[0].weight[:, gone, 0, 0] @ emitted[gone]


def _mean_output(block: nn.Sequential) -> Tensor:
    """Mean of each channel after BatchNorm and activation, for normally distributed inputs: BatchNorm's mean β, deviation γ."""
    z = torch.special.ndtri((torch.arange(64, device=block[1].weight.device) + 0.5) / 64)
    return block[2](block[1].bias[:, None] + block[1].weight[:, None] * z).mean(dim=1)

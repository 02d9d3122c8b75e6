"""What a network costs: parameters, the paper's FLOPs, plain multiply-accumulates, layer by layer."""

import copy

import torch
from torch import Tensor, nn


def count_parameters(model: nn.Module) -> int:
    """Number of weights and biases, BatchNorm's γ and β among them: 4,215,130 for the dense network (Table 3)."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_flops(model: nn.Module, image_size: int = 224) -> int:
    """The paper's FLOPs for one image: 230.25 M for the dense network, 138.07 M for Table 5's (Table 3).

    Multiply-accumulates of convolutions and linear layers (no bias) + 2 per BatchNorm output + 1 per ReLU or ReLU6
    output. `image_size` in pixels. Runs on the meta device: nothing is computed, and the model is untouched.
    """
    return sum(row["flops"] for row in layer_costs(model, image_size))


def count_macs(model: nn.Module, image_size: int = 224) -> int:
    """Multiply-accumulates of the convolutions and linear layers for one image of `image_size` pixels."""
    return sum(row["macs"] for row in layer_costs(model, image_size))


def layer_costs(model: nn.Module, image_size: int = 224) -> list[dict]:
    """One row per execution of a layer: name, type, output shape (C, H, W), parameters, macs, flops (the paper's count).

    `image_size` in pixels. Operations that are no layers (SE's product, the residual sum) have no row. Raises ValueError
    for an image size that is no integer ≥ 1.
    """
    if isinstance(image_size, bool) or not isinstance(image_size, int) or image_size < 1:
        raise ValueError(f"image_size must be an integer number of pixels ≥ 1, got {image_size!r}")
    rows = []

    def add_row(layer: nn.Module, inputs: tuple, output: Tensor) -> None:
        macs = _macs(layer, output)
        rows.append(
            {
                "name": names[layer],
                "type": type(layer).__name__,
                "shape": tuple(output.shape[1:]),
                "parameters": count_parameters(layer),
                "macs": macs,
                "flops": macs + _extra_flops(layer) * output.numel(),
            }
        )

    shapes_only = copy.deepcopy(model).to("meta", torch.float32).eval()  # the type of the input below
    names = {module: name for name, module in shapes_only.named_modules()}
    for module in names:
        # timm's BatchNorm holds its activation as a child, and is a layer all the same
        if not list(module.children()) or isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(add_row)
    with torch.no_grad():
        shapes_only(torch.empty(1, 3, image_size, image_size, device="meta"))
    return rows


def _macs(layer: nn.Module, output: Tensor) -> int:
    if not isinstance(layer, nn.Conv2d | nn.Linear):
        return 0
    weights_per_output = layer.weight[0].numel()  # of one filter: (C_in / groups)·kernel
    return weights_per_output * output.numel()


def _extra_flops(layer: nn.Module) -> int:
    """What the paper counts per output beside multiply-accumulates; h-swish and hard-sigmoid count nothing."""
    if isinstance(layer, nn.BatchNorm2d):
        return 2
    if isinstance(layer, nn.ReLU | nn.ReLU6):
        return 1
    return 0

"""What a network costs: parameters, the paper's FLOPs, plain multiply-accumulates, layer by layer."""

import copy
from functools import partial

import torch
from torch import nn


def count_parameters(model: nn.Module) -> int:
    """Number of weights and biases, BatchNorm's γ and β among them: 4 215 130 for the dense network (Table 3)."""
    return sum(p.numel() for p in model.parameters())


def count_flops(model: nn.Module, image_size: int = 224) -> int:
    """The paper's FLOPs for one image: 230.25 M for the dense network, 138.07 M for Table 5's (Table 3).

    Multiply-accumulates of convolutions and linear layers (no bias) + 2 for each BatchNorm output + 1 for each
    ReLU or ReLU6 output. `image_size` in pixels. Runs on the meta device: no arithmetic, the model is untouched.
    """
    return sum(row["flops"] for row in layer_costs(model, image_size))


def count_macs(model: nn.Module, image_size: int = 224) -> int:
    """Multiply-accumulates of the convolutions and linear layers for one image of `image_size` pixels."""
    return sum(row["macs"] for row in layer_costs(model, image_size))


def layer_costs(model: nn.Module, image_size: int = 224) -> list[dict]:
    """One row for each layer run: name, type, output shape (C, H, W), parameters, macs, flops (the paper's count)."""
    if not isinstance(image_size, int) or image_size < 1:
        raise ValueError(f"image_size must be an integer number of pixels ≥ 1, got {image_size!r}")
    shadow, rows = copy.deepcopy(model).to("meta").eval(), []

    def add_row(name: str, module: nn.Module, inputs: tuple, out: torch.Tensor) -> None:
        outputs = out.numel()  # one weight[i] makes each; all are as large as weight[0]
        macs = module.weight[0].numel() * outputs if isinstance(module, nn.Conv2d | nn.Linear) else 0
        additions = 2 if isinstance(module, nn.BatchNorm2d) else 1 if type(module) in (nn.ReLU, nn.ReLU6) else 0
        about = {"name": name, "type": type(module).__name__, "shape": tuple(out.shape[1:])}
        rows.append(about | {"parameters": count_parameters(module), "macs": macs, "flops": macs + additions * outputs})

    for name, module in shadow.named_modules():
        if not list(module.children()) or isinstance(module, nn.BatchNorm2d):  # timm's BatchNorm holds its activation
            module.register_forward_hook(partial(add_row, name))
    with torch.no_grad():
        shadow(torch.empty(1, 3, image_size, image_size, device="meta"))
    return rows

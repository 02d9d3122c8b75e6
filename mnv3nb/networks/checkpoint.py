"""Networks in and out: safetensors with JSON metadata and a checksum; nothing is ever unpickled."""

import os
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..blocks import blocks, narrow_block
from ..importance import filter_sparsity
from ..model import STRIDES, MobileNetV3Large
from ..system.files import check_ending
from ..system.tensors import load_tensors, save_tensors
from .zoo import build_network, classifier_of, normalise_input


def save_model(model: nn.Module, path: str | os.PathLike, /, half: bool = False, **metadata) -> None:
    """Write `model` with all that rebuilds it and any JSON `metadata` (image_size, classes, accuracy, ...).

    `half=True` stores convolution and linear weights in fp16 and all else in fp32: γ of 1e-10 would be 0 in fp16, and
    with it the ranking. The expansions are rounded so that every S (Eq. 3), and so every mask, stays what it was.
    Raises ValueError for another ending than .safetensors or a network of unknown architecture.
    """
    check_ending(path, ".safetensors")
    if not hasattr(model, "architecture"):
        how = "make it with build_network, or set model.architecture to a name such as 'torchvision/mobilenet_v2'"
        raise ValueError(f"save_model cannot tell how to rebuild a {type(model).__name__}: {how}")
    found, tensors = blocks(model), dict(model.state_dict())
    if half:
        names = {module: name for name, module in model.named_modules()}
        expansions = {f"{names[block.expand]}.weight" for block in found}
        tensors = {k: halve(v, filter_sparsity if k in expansions else None) for k, v in tensors.items()}
    recipe = {
        "architecture": model.architecture,
        "num_classes": classifier_of(model)[1].out_features,
        "widths": [block.width for block in found],
        "squeeze": [block.hidden for block in found],
    }
    recipe |= {"normalisation": model.normalisation} if hasattr(model, "normalisation") else {}
    if isinstance(model, MobileNetV3Large) and model.strides != STRIDES:
        recipe["strides"] = model.strides
    save_tensors(path, tensors, {**metadata, "model": recipe})


def load_model(path: str | os.PathLike) -> nn.Module:
    """The network that `save_model` wrote, in fp32, on the CPU, in eval mode; `.metadata`: what was stored with it.

    Raises FileNotFoundError, or ValueError for a foreign or damaged file or widths that do not fit the tensors.
    """
    tensors, metadata = load_tensors(path)
    if "model" not in metadata:
        raise ValueError(f"{path} holds no model but the state of a training; give a model.safetensors")
    try:
        with torch.device("meta"):  # no memory is taken for widths that a file only claims
            model = _rebuild(**metadata["model"])
        expected = model.state_dict()
        for name in expected.keys() & tensors.keys():
            if expected[name].is_floating_point() != tensors[name].is_floating_point():
                raise TypeError(f"{name} is {tensors[name].dtype}")
        state = OrderedDict((k, v.float() if v.is_floating_point() else v) for k, v in tensors.items())
        state._metadata = expected._metadata  # MNASNet asks for its version
        model.load_state_dict(state, assign=True)
    except (RuntimeError, TypeError, OverflowError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: the network it describes cannot be rebuilt: {str(error).splitlines()[0]}") from error
    model.metadata = {key: value for key, value in metadata.items() if key != "model"}
    return model.eval()


def _rebuild(
    architecture: str, num_classes: int, widths: list, squeeze: list, normalisation=None, strides: list | None = None
) -> nn.Module:
    if architecture == MobileNetV3Large.architecture:
        return MobileNetV3Large(num_classes, widths, squeeze, strides=strides)
    model = build_network(architecture, num_classes)
    for block, width, hidden in zip(blocks(model), widths, squeeze, strict=True):
        first = torch.arange(max(block.width, block.hidden), device="cpu")
        narrow_block(block, first[:width], first[:hidden])
    return normalise_input(model, *normalisation) if normalisation else model


def halve(weight: Tensor, keep: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """`weight` in fp16, rounded so that `keep(weight)`, S of its filters, stays equal; unchanged where that fails.

    Vectors (biases and all of BatchNorm) stay in fp32: γ of 1e-10 would be 0.
    """
    weight = weight.detach().cpu()
    if weight.ndim < 2:
        return weight
    half = weight.half()
    above = weight.abs() >= weight.abs().mean()
    for _ in range(16 if keep else 0):
        # one fp16 step towards its own side for each weight that rounding took across the mean
        magnitude = half.float().abs()
        wrong = (magnitude >= magnitude.mean()) != above
        if not wrong.any():
            break
        half.view(torch.int16)[wrong] += torch.where(above[wrong], 1, -1).to(torch.int16)
    same = keep is None or torch.equal(keep(half.float()), keep(weight))
    return half if same and half.isfinite().all() else weight  # fp16 is too coarse or too short for it

"""Networks on disk: safetensors with JSON metadata and a checksum. Reading one never unpickles anything."""

import os
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from ..blocks import blocks, narrow_block
from ..importance import filter_sparsity
from ..model import STRIDES, MobileNetV3Large
from ..system.files import check_ending
from ..system.tensors import load_tensors, save_tensors
from .zoo import build_network, find_classifier, normalise_input

MAX_ROUNDS = 16  # of correction in halve_expansion; one is mostly enough


def save_model(model: nn.Module, path: str | os.PathLike, /, half: bool = False, **metadata) -> None:
    """Write `model`, all that is needed to rebuild it, and any JSON `metadata` (image_size, classes, accuracy, ...).

    `half=True` stores convolution and linear weights in fp16 and everything else in fp32, because a γ of 1e-10 would
    be 0 in fp16 and its rank lost. Expansions are rounded so that every S (Eq. 3), and so every mask, stays the same.
    Raises ValueError for a path that does not end in .safetensors or a network of unknown architecture.
    """
    check_ending(path, ".safetensors")
    if not hasattr(model, "architecture"):
        raise ValueError(
            f"save_model cannot tell how to rebuild a {type(model).__name__}: make it with build_network, "
            "or set model.architecture to a name such as 'torchvision/mobilenet_v2'"
        )
    tensors = _halve_tensors(model) if half else dict(model.state_dict())
    save_tensors(path, tensors, {**metadata, "model": _recipe(model)})


def load_model(path: str | os.PathLike) -> nn.Module:
    """Read a network that `save_model` wrote: fp32, on the CPU, in eval mode. `.metadata` is what was stored with it.

    Raises FileNotFoundError, or ValueError for a foreign or damaged file or widths that do not fit the tensors.
    """
    tensors, metadata = load_tensors(path)
    if "model" not in metadata:
        raise ValueError(f"{path} is a training checkpoint, not a model; give a model.safetensors")
    try:
        with torch.device("meta"):  # takes no memory, however large the widths that a file claims
            model = _rebuild(**metadata["model"])
        _load_tensors_into(model, tensors)
    except (RuntimeError, TypeError, OverflowError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: the network it describes cannot be rebuilt: {str(error).splitlines()[0]}") from error
    model.metadata = {key: value for key, value in metadata.items() if key != "model"}
    return model.eval()


def halve(weight: Tensor) -> Tensor:
    """`weight` in fp16; unchanged if it is a vector (a bias, all of BatchNorm) or beyond fp16's range."""
    if weight.ndim < 2:
        return weight
    rounded = weight.half()
    return rounded if rounded.isfinite().all() else weight


def halve_expansion(weight: Tensor) -> Tensor:
    """An expansion's `weight` in fp16, rounded so that S of every filter stays the same; unchanged if that fails."""
    # S counts the weights whose magnitude reaches m, the layer's mean magnitude. So each weight must stay on its side of
    # m, but rounding to the nearest fp16 number takes a few across. It moves a weight by at most half a step between
    # fp16 numbers, and half a step is at most 2^-11 of the magnitude. So it moves m by at most 2^-11 · m, which is less
    # than a step at m. A weight on the wrong side is therefore within one and a half steps of the new m, and one or two
    # steps towards its own side bring it back. Moving k of n weights by a step moves m by k / n of a step, which can take
    # others across: hence the loop. It can fail where magnitudes are below fp16's normal range, so the result is checked.
    weight = weight.detach().cpu()  # where masks are computed: another device can give m other last bits
    reaches_mean = weight.abs() >= weight.abs().mean()
    rounded = weight.to(torch.float16, copy=True)
    # The bits of an fp16 number below its sign, read as an integer, count the steps from 0. The sign is the top bit, so
    # adding 1 to all 16 bits is a step away from 0 for positive and negative numbers alike.
    steps = rounded.view(torch.int16)
    for _ in range(MAX_ROUNDS):
        magnitude = rounded.float().abs()
        wrong = (magnitude >= magnitude.mean()) != reaches_mean
        if not wrong.any():
            break
        steps[wrong & reaches_mean] += 1
        steps[wrong & ~reaches_mean] -= 1
    same_sparsity = torch.equal(filter_sparsity(rounded.float()), filter_sparsity(weight))
    return rounded if same_sparsity and rounded.isfinite().all() else weight


def _halve_tensors(model: nn.Module) -> dict[str, Tensor]:
    expansions = {block.expand for block in blocks(model)}
    names = {f"{name}.weight" for name, module in model.named_modules() if module in expansions}
    halved = {}
    for name, tensor in model.state_dict().items():
        halved[name] = halve_expansion(tensor) if name in names else halve(tensor)
    return halved


def _recipe(model: nn.Module) -> dict[str, Any]:
    """The arguments of `_rebuild`. Keys that most networks do not need are left out: equal networks, equal files."""
    found = blocks(model)
    recipe = {
        "architecture": model.architecture,
        "num_classes": find_classifier(model)[1].out_features,
        "widths": [block.width for block in found],
        "squeeze": [block.hidden for block in found],
    }
    if hasattr(model, "normalisation"):
        recipe["normalisation"] = model.normalisation
    if isinstance(model, MobileNetV3Large) and model.strides != STRIDES:
        recipe["strides"] = model.strides
    return recipe


def _rebuild(
    architecture: str,
    num_classes: int,
    widths: list[int],
    squeeze: list[int],
    normalisation: list[list[float]] | None = None,
    strides: list[int] | None = None,
) -> nn.Module:
    """The network with these expansion widths and SE widths (`squeeze`), without its weights."""
    if architecture == MobileNetV3Large.architecture:
        return MobileNetV3Large(num_classes, widths, squeeze, strides=strides)
    model = build_network(architecture, num_classes)
    for block, width, se_width in zip(blocks(model), widths, squeeze, strict=True):
        # Which channels are kept does not matter here: their weights come from the file.
        channels = torch.arange(max(block.width, block.hidden), device="cpu")
        narrow_block(block, channels[:width], channels[:se_width])
    if normalisation:
        mean, deviation = normalisation
        normalise_input(model, mean, deviation)
    return model


def _load_tensors_into(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Give `model`, which has none yet, its tensors, in fp32; raises TypeError or RuntimeError if they do not fit."""
    expected = model.state_dict()
    state = OrderedDict()
    for name, tensor in tensors.items():
        if name in expected and expected[name].is_floating_point() != tensor.is_floating_point():
            raise TypeError(f"{name} is {tensor.dtype}")
        state[name] = tensor.float() if tensor.is_floating_point() else tensor
    state._metadata = expected._metadata  # MNASNet asks for its version
    model.load_state_dict(state, assign=True)

"""One ONNX graph for a network at any widths: it is exported once, and other weights are put into it."""

import copy
from collections.abc import Mapping
from itertools import pairwise

import onnx
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .export import to_onnx


def fused(model: nn.Module) -> nn.Module:
    """A copy with every BatchNorm folded into the convolution before it, as deployed; in eval mode the same function."""
    model = copy.deepcopy(model).cpu().eval()
    for parent in list(model.modules()):
        layers = list(parent.named_children())
        for (conv_name, conv), (norm_name, norm) in pairwise(layers):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                activation = getattr(norm, "act", nn.Identity())  # timm's BatchNorm holds its activation
                setattr(parent, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(parent, norm_name, activation)
    return model


def onnx_template(model: nn.Module, image_size: int) -> onnx.ModelProto:
    """The ONNX graph of `fused(model)` with random weights, for `with_weights` to replace.

    Exporting takes seconds. With a template, it is done once for a network at many widths.
    """
    model = fused(model)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)  # not zero, because the export would optimise a zero bias away
    return to_onnx(model, image_size)


def with_weights(template: onnx.ModelProto, weights: Mapping[str, Tensor]) -> onnx.ModelProto:
    """The graph `template`, or a part of it, with the weights of another network, and so with its widths.

    `weights`: the state dict of `fused(network)`, where the network has the template's architecture.
    """
    graph = copy.deepcopy(template)
    for tensor in graph.graph.initializer:
        if tensor.name in weights:
            values = weights[tensor.name].detach().numpy()
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    for node in graph.graph.node:
        if node.op_type == "Conv":
            weight_name = node.input[1]
            _set_groups(node, weights[weight_name])
    del graph.graph.value_info[:]  # the shapes of the template's inner tensors
    return graph


def _set_groups(node: onnx.NodeProto, weight: Tensor) -> None:
    """Let a convolution have as many groups as its `weight` (N, C, H, W) demands."""
    channels, inputs_per_group, kernel_size, _ = weight.shape
    depthwise = inputs_per_group == 1 and kernel_size > 1  # a 1×1 kernel with one input may be a block of width 1
    for attribute in node.attribute:
        if attribute.name == "group":
            attribute.i = channels if depthwise else 1

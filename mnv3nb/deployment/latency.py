"""Latency on this machine: networks measured side by side, and ONNX graphs of a network at other widths."""

import copy
import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from timeit import timeit

import numpy as np
import onnx
import pandas as pd
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .export import session, to_onnx

Runner = Callable[[], object]  # one inference of one batch


def interleaved(runners: Mapping[str, Runner], rounds: int, least_ms: float = 5.0) -> pd.DataFrame:
    """Time in ms of one call of each runner (columns) in each round (rows).

    In a round every runner has its turn, in an order that rotates, so that whatever slows the machine for a while slows
    all of them: compare within a round. A turn repeats its call until `least_ms` have passed.
    """
    names, rows, calls = list(runners), [], {}
    for name, run in runners.items():
        run()
        calls[name] = max(1, math.ceil(least_ms / 1e3 / timeit(run, number=1)))
    for turn in range(rounds):
        order = names[turn % len(names) :] + names[: turn % len(names)]
        rows.append({name: timeit(runners[name], number=calls[name]) * 1e3 / calls[name] for name in order})
    return pd.DataFrame(rows, columns=names)


def ratios(times: pd.DataFrame, to: str = "dense") -> pd.DataFrame:
    """Median and quartiles over the rounds of `interleaved`: each column's time divided by column `to` of its round.

    Columns ratio, ratio_low, ratio_high and ms, the median time.
    """
    table = times.div(times[to], axis=0).quantile([0.5, 0.25, 0.75]).T
    return table.set_axis(["ratio", "ratio_low", "ratio_high"], axis=1).assign(ms=times.median())


def onnx_runner(graph: onnx.ModelProto, batch: int = 1, threads: int = 1) -> Runner:
    """One inference of an ONNX graph on random input by ONNX Runtime on the CPU; `threads` = 0: all cores."""
    run, (given,) = session(graph, threads), graph.graph.input
    shape = [d.dim_value or batch for d in given.type.tensor_type.shape.dim]
    feed = {given.name: np.random.default_rng(0).normal(size=shape).astype(np.float32)}
    return lambda: run.run(None, feed)


def fused(model: nn.Module) -> nn.Module:
    """A copy with every BatchNorm folded into the convolution before it, as deployed; the same function in eval mode."""
    model = copy.deepcopy(model).cpu().eval()
    for parent in list(model.modules()):
        layers = list(parent.named_children())
        for (name, conv), (after, norm) in pairwise(layers):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(conv, norm))
                setattr(parent, after, getattr(norm, "act", nn.Identity()))  # timm's BatchNorm holds its activation
    return model


def onnx_template(model: nn.Module, image_size: int) -> onnx.ModelProto:
    """The ONNX graph of `fused(model)` with random weights, to be replaced by `with_weights`: exporting takes seconds."""
    model = fused(model)
    for p in model.parameters():  # a bias of zeros would be optimised away
        nn.init.normal_(p, std=0.1)
    return to_onnx(model, image_size)


def with_weights(template: onnx.ModelProto, weights: Mapping[str, Tensor]) -> onnx.ModelProto:
    """The graph `template`, or a part of it, with the weights, and so the widths, of another network.

    `weights`: the state dict of a network that is `fused`, of the template's architecture.
    """
    graph = copy.deepcopy(template)
    for tensor in graph.graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(onnx.numpy_helper.from_array(weights[tensor.name].detach().numpy(), tensor.name))
    for node in graph.graph.node:
        if node.op_type == "Conv":
            channels, inputs, kernel, _ = weights[node.input[1]].shape
            group = next(attribute for attribute in node.attribute if attribute.name == "group")
            group.i = channels if inputs == 1 and kernel > 1 else 1  # depthwise or not
    del graph.graph.value_info[:]  # shapes of the other network
    return graph

"""Latency on this machine: networks side by side, ONNX graphs of a network at other widths, and why a network is slow."""

import copy
import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from timeit import timeit

import numpy as np
import onnx
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..blocks import Block, blocks, narrow_block
from ..costs import count_flops
from ..pruning import se_width
from .export import session, to_onnx
from .widths import current_costs, default_se_rule

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


def explain_latency(model: nn.Module, image_size: int = 224, rounds: int = 15) -> pd.DataFrame:
    """Where the time of `model` goes: one row per block, measured as in `block_latencies`.

    Columns: block (its name); width; multiple_of, the largest of 16, 8, 4 and 1 that divides the width; flops_share and
    time_share of the whole network, whose rest lies outside the blocks; ms; aligned_width, the multiple of 16 nearest
    to the width; aligned_ratio, the block's time at that width divided by its time at its own.
    """
    found, flops = blocks(model), count_flops(model, image_size)
    widths = [[block.width, max(16, int(block.width / 16 + 0.5) * 16)] for block in found]
    table = block_latencies(onnx_template(model, image_size), model, widths, rounds)
    own, aligned = (table[start::2].reset_index(drop=True) for start in (0, 1))
    columns = {
        "block": [block.name for block in found],
        "width": own.width,
        "multiple_of": [next(k for k in (16, 8, 4, 1) if width % k == 0) for width in own.width],
        "flops_share": [cost / flops for cost in current_costs(model, "flops", image_size)],
        "time_share": own.share,
        "ms": own.ms,
        "aligned_width": aligned.width,
        "aligned_ratio": aligned.ratio,
    }
    return pd.DataFrame(columns)


def block_latencies(template: onnx.ModelProto, model: nn.Module, widths: list[list[int]], rounds: int) -> pd.DataFrame:
    """Latency of each block alone at each of its `widths[i]`; `template`: from `onnx_template(model, image_size)`.

    ONNX Runtime, one thread, batch 1; all take turns in each of the `rounds`. Columns block (its index), width, ms and
    ratio to the block's first width, both medians, and share of the whole network at its own widths: the shortest time
    divided by the network's shortest, because interruptions prolong long calls the most.
    """
    runners = {"network": onnx_runner(with_weights(template, fused(model).state_dict()))}
    for block, part, options in zip(blocks(model), _parts(template, model), widths, strict=True):
        for width in options:
            hidden = block.hidden if width == block.width else se_width(width, block.hidden, default_se_rule(model))
            runners[f"{block.name} {width}"] = onnx_runner(with_weights(part, _weights(block, width, hidden)))
    times, rows = interleaved(runners, rounds, least_ms=1.0), []
    for i, (block, options) in enumerate(zip(blocks(model), widths)):
        first = times[f"{block.name} {options[0]}"]
        for width in options:
            ms = times[f"{block.name} {width}"]
            share = ms.min() / times["network"].min()
            rows.append({"block": i, "width": width, "ms": ms.median(), "ratio": (ms / first).median(), "share": share})
    return pd.DataFrame(rows)


def _parts(template: onnx.ModelProto, model: nn.Module) -> list[onnx.ModelProto]:
    """The graph of each block alone, with its residual connection."""
    names = {module: name for name, module in model.named_modules()}
    takes = {name: node for node in template.graph.node for name in node.input}
    cut, parts = onnx.utils.Extractor(template), []
    for block in blocks(model):
        start = takes[f"{names[block.expand]}.weight"].input[0]
        end = takes[f"{names[block.project]}.weight"].output[0]
        residual = [node.output[0] for node in template.graph.node if set(node.input) == {start, end}]
        parts.append(cut.extract_model([start], residual or [end]))
    return parts


def _weights(block: Block, width: int, hidden: int) -> dict[str, Tensor]:
    """Weights of the fused block at another width; channels are repeated where that is larger."""
    (copied,) = blocks(copy.deepcopy(block.module))
    narrow_block(copied, torch.arange(width) % block.width, torch.arange(hidden))
    return {f"{block.name}.{name}": weight for name, weight in fused(copied.module).state_dict().items()}

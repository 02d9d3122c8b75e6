"""Latency on this machine: networks side by side, and one network block by block."""

import copy
import math
from collections.abc import Callable, Mapping
from timeit import timeit

import numpy as np
import onnx
import pandas as pd
import torch
from torch import Tensor, nn

from ..blocks import Block, blocks, narrow_block
from ..costs import count_flops
from ..pruning import default_se_rule, se_width
from .export import session
from .template import fused, onnx_template, with_weights
from .widths import current_costs

Runner = Callable[[], object]  # a call runs a network once, on one batch


def interleaved(runners: Mapping[str, Runner], rounds: int, least_ms: float = 5.0) -> pd.DataFrame:
    """Time in ms of one call of each runner (columns) in each round (rows).

    Every runner has its turn in every round, and the order rotates. Whatever slows the machine for a while slows all
    runners, so compare within a round. A turn repeats its call until about `least_ms` have passed.
    """
    names = list(runners)
    calls_per_turn = {name: _calls_in(least_ms, runner) for name, runner in runners.items()}
    rows = []
    for number in range(rounds):
        first = number % len(names)
        order = names[first:] + names[:first]
        row = {}
        for name in order:
            calls = calls_per_turn[name]
            row[name] = timeit(runners[name], number=calls) * 1e3 / calls
        rows.append(row)
    return pd.DataFrame(rows, columns=names)


def ratios(times: pd.DataFrame, to: str = "dense") -> pd.DataFrame:
    """Each runner's time divided by that of runner `to` in the same round; `times`: from `interleaved`.

    One row per runner; columns ratio (the median over the rounds), ratio_low and ratio_high (the quartiles), and ms
    (the median time itself).
    """
    relative = times.div(times[to], axis=0)
    table = relative.quantile([0.5, 0.25, 0.75]).T
    table.columns = ["ratio", "ratio_low", "ratio_high"]
    return table.assign(ms=times.median())


def onnx_runner(graph: onnx.ModelProto, batch: int = 1, threads: int = 1) -> Runner:
    """Runs an ONNX graph on random input in ONNX Runtime on the CPU; `threads` = 0: all cores."""
    loaded = session(graph, threads)
    (entry,) = graph.graph.input
    shape = [dimension.dim_value or batch for dimension in entry.type.tensor_type.shape.dim]  # 0: any batch size
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return lambda: loaded.run(None, {entry.name: x})


def explain_latency(model: nn.Module, image_size: int = 224, rounds: int = 15) -> pd.DataFrame:
    """Where the time of `model` goes: one row per block, measured as in `block_latencies`.

    Columns: block (its name); width; multiple_of, the largest of 16, 8, 4 and 1 that divides the width; flops_share and
    time_share, of the whole network, part of which lies outside the blocks; ms; aligned_width, the multiple of 16
    nearest to the width; aligned_ratio, the block's time at that width divided by its time at its own width.
    """
    found = blocks(model)
    block_flops = current_costs(model, "flops", image_size)
    network_flops = count_flops(model, image_size)
    own_and_aligned = [[block.width, _nearest_multiple(block.width, 16)] for block in found]
    template = onnx_template(model, image_size)
    measured = block_latencies(template, model, own_and_aligned, rounds).to_dict("records")
    rows = []
    for i, block in enumerate(found):
        own = measured[2 * i]  # two rows per block, in the order of its widths
        aligned = measured[2 * i + 1]
        rows.append(
            {
                "block": block.name,
                "width": block.width,
                "multiple_of": _largest_divisor(block.width),
                "flops_share": block_flops[i] / network_flops,
                "time_share": own["share"],
                "ms": own["ms"],
                "aligned_width": aligned["width"],
                "aligned_ratio": aligned["ratio"],
            }
        )
    return pd.DataFrame(rows)


def block_latencies(template: onnx.ModelProto, model: nn.Module, widths: list[list[int]], rounds: int) -> pd.DataFrame:
    """Latency of each block of `model` alone at each of its `widths[i]`: one row per block and width.

    `template`: from `onnx_template(model, image_size)`. ONNX Runtime, one thread, batch 1; the whole network and all
    blocks take turns in each of the `rounds`. Columns: block (its index); width; ms, the median time; ratio, the median
    of the times divided by those at the block's first width; share, the shortest time divided by the network's
    shortest. A share takes the shortest times because interruptions prolong long calls the most.
    """
    found = blocks(model)
    runners = {"network": onnx_runner(with_weights(template, fused(model).state_dict()))}
    for block, part, block_widths in zip(found, _cut_into_blocks(template, model), widths, strict=True):
        for width in block_widths:
            hidden = block.hidden
            if width != block.width:
                hidden = se_width(width, block.hidden, default_se_rule(model))
            runners[f"{block.name} {width}"] = onnx_runner(with_weights(part, _block_weights(block, width, hidden)))
    times = interleaved(runners, rounds, least_ms=1.0)

    shortest_of_network = times["network"].min()
    rows = []
    for i, block in enumerate(found):
        reference = times[f"{block.name} {widths[i][0]}"]
        for width in widths[i]:
            ms = times[f"{block.name} {width}"]
            rows.append(
                {
                    "block": i,
                    "width": width,
                    "ms": ms.median(),
                    "ratio": (ms / reference).median(),
                    "share": ms.min() / shortest_of_network,
                }
            )
    return pd.DataFrame(rows)


def _calls_in(least_ms: float, runner: Runner) -> int:
    """How many calls of `runner` take `least_ms`, at least 1."""
    runner()  # the first call takes longer
    seconds = timeit(runner, number=1)
    return max(1, math.ceil(least_ms / 1e3 / seconds))


def _nearest_multiple(width: int, k: int) -> int:
    """The multiple of `k`, at least `k`, nearest to `width`; the larger of two."""
    return max(k, int(width / k + 0.5) * k)


def _largest_divisor(width: int) -> int:
    """The largest of 16, 8, 4 and 1 that divides `width`."""
    for divisor in (16, 8, 4):
        if width % divisor == 0:
            return divisor
    return 1


def _cut_into_blocks(template: onnx.ModelProto, model: nn.Module) -> list[onnx.ModelProto]:
    """The part of the graph that is each block, with its residual connection."""
    nodes = template.graph.node
    layer_names = {module: name for name, module in model.named_modules()}
    node_with_input = {name: node for node in nodes for name in node.input}
    extractor = onnx.utils.Extractor(template)
    parts = []
    for block in blocks(model):
        start = node_with_input[f"{layer_names[block.expand]}.weight"].input[0]
        end = node_with_input[f"{layer_names[block.project]}.weight"].output[0]
        for node in nodes:
            if set(node.input) == {start, end}:  # adds the block's input to its output
                end = node.output[0]
                break
        parts.append(extractor.extract_model([start], [end]))
    return parts


def _block_weights(block: Block, width: int, hidden: int) -> dict[str, Tensor]:
    """Weights of the fused block with `width` channels, which are repeated where it has fewer, and `hidden` of SE."""
    (resized,) = blocks(copy.deepcopy(block.module))
    narrow_block(resized, torch.arange(width) % block.width, torch.arange(hidden))
    weights = fused(resized.module).state_dict()
    return {f"{block.name}.{name}": weight for name, weight in weights.items()}

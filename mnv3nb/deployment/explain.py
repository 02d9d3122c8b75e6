"""Why is a pruned network not faster? The latency of its blocks alone, at the widths they have and at others."""

import copy

import onnx
import pandas as pd
import torch
from torch import Tensor, nn

from ..blocks import Block, blocks, narrow_block
from ..complexity import count_flops
from ..pruning import hidden_width
from .latency import fused, interleaved, onnx_runner, onnx_template, with_weights
from .widths import current_costs, squeeze_rule


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
            hidden = block.hidden if width == block.width else hidden_width(width, block.hidden, squeeze_rule(model))
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

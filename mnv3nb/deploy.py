"""What a network costs on a machine: latency of whole networks and of single units, measured side by side."""

import copy
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from timeit import timeit

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quant_pre_process, quantize_static
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.ops.misc import Conv2dNormActivation

from .checkpoint import export_onnx
from .data import to_input
from .model import DENSE_WIDTHS, MobileNetV3Large
from .pruning import prune

Runner = Callable[[], object]  # one inference of one batch


def interleaved(runners: dict[str, Runner], rounds: int, least_ms: float = 5.0) -> pd.DataFrame:
    """Time in ms of one call of each runner (columns) in each round (rows).

    In a round every runner has its turn, in an order that rotates, so that whatever slows the machine for a while slows
    all of them: compare within a round. A turn repeats its call until `least_ms` have gone by.
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
    """Median and quartiles, over the rounds of `interleaved`, of each column's time divided by column `to` of its round."""
    table = times.div(times[to], axis=0).quantile([0.5, 0.25, 0.75]).T
    return table.set_axis(["ratio", "ratio_low", "ratio_high"], axis=1).assign(ms=times.median())


def torch_runner(model: nn.Module, batch: int, image_size: int, device: str = "cpu", compiled: bool = False) -> Runner:
    """One inference of `model` on random images by PyTorch, channels_last; ends when the device has finished."""
    model = copy.deepcopy(model).to(device, memory_format=torch.channels_last).eval()
    run = torch.compile(model) if compiled else model
    x = torch.randn(batch, 3, image_size, image_size, device=device).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def infer() -> None:
        run(x)
        if not x.is_cpu:
            torch.accelerator.synchronize()

    return infer


def onnx_runner(graph: onnx.ModelProto, batch: int, image_size: int, threads: int = 1) -> Runner:
    """One inference of an ONNX graph on random images by ONNX Runtime on the CPU; `threads` = 0: all cores."""
    run, x = session(graph, threads), np.random.default_rng(0).normal(size=(batch, 3, image_size, image_size))
    feed = {"images": x.astype(np.float32)}
    return lambda: run.run(None, feed)


def session(graph: onnx.ModelProto, threads: int = 1) -> onnxruntime.InferenceSession:
    """`graph` ready to run on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    return onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])


def fused(model: MobileNetV3Large) -> nn.Module:
    """A copy with every BatchNorm folded into its convolution, as it is deployed; the same function in eval mode."""
    model = copy.deepcopy(model).cpu().eval()
    for block in [m for m in model.modules() if isinstance(m, Conv2dNormActivation)]:
        block[0], block[1] = fuse_conv_bn_eval(block[0], block[1]), nn.Identity()
    return model


def onnx_template(num_classes: int, image_size: int) -> onnx.ModelProto:
    """The ONNX graph of a dense network, for `with_weights`: exporting takes seconds, changing its tensors does not."""
    model = fused(MobileNetV3Large(num_classes))
    for p in model.parameters():  # a bias of zeros would be optimised away
        nn.init.normal_(p, std=0.1)
    with tempfile.TemporaryDirectory() as folder:
        export_onnx(model, os.path.join(folder, "dense.onnx"), image_size)
        return onnx.load(os.path.join(folder, "dense.onnx"))


def with_weights(template: onnx.ModelProto, model: nn.Module) -> onnx.ModelProto:
    """The graph `template`, or a part of it, with the weights, and so the widths, of `model`, which is `fused` already."""
    graph, state = copy.deepcopy(template), model.state_dict()
    for tensor in graph.graph.initializer:
        if tensor.name in state:
            tensor.CopyFrom(onnx.numpy_helper.from_array(state[tensor.name].numpy(), tensor.name))
    for node in graph.graph.node:
        if node.op_type == "Conv" and ".depthwise." in node.input[1]:
            group = next(a for a in node.attribute if a.name == "group")
            group.i = len(state[node.input[1]])
    del graph.graph.value_info[:]  # shapes of the other network
    return graph


def quantized(graph: onnx.ModelProto, images: Tensor, image_size: int, batch: int = 32) -> onnx.ModelProto:
    """`graph` in int8 (static, weights per channel), its ranges calibrated on `images` (uint8 (N, 3, H, W))."""
    feeds = iter([{"images": to_input(part, image_size).contiguous().numpy()} for part in images.split(batch)])
    reader = type("Reader", (CalibrationDataReader,), {"get_next": lambda self: next(feeds, None)})()
    with tempfile.TemporaryDirectory() as folder:
        plain, ready, small = (Path(folder, f"{name}.onnx") for name in ("plain", "ready", "small"))
        onnx.save(graph, plain)
        quant_pre_process(plain, ready, skip_symbolic_shape=True)
        quantize_static(ready, small, reader, QuantFormat.QDQ, per_channel=True, activation_type=QuantType.QUInt8,
                        weight_type=QuantType.QInt8)  # fmt: skip
        return onnx.load(small)


def onnx_accuracy(graph: onnx.ModelProto, images: Tensor, labels: Tensor, image_size: int) -> float:
    """Share of `images` (uint8) that `graph` labels right under ONNX Runtime, in [0, 1]."""
    run = session(graph, 0)
    feeds = (to_input(part, image_size).contiguous().numpy() for part in images.split(500))
    answers = np.concatenate([run.run(None, {"images": x})[0].argmax(1) for x in feeds])
    return float((answers == labels.numpy()).mean())


def width_grid(widths: int, neighbours: int, k: int = 16) -> list[list[int]]:
    """Widths of each unit worth timing: the dense one, up to `widths` multiples of k, and what lies just below some of them.

    Below `neighbours` multiples: the nearest width that is a multiple of 8, of 4 and of nothing more than 1.
    """
    grid = []
    for dense in DENSE_WIDTHS:
        whole = np.arange(k, dense + 1, k)
        whole = whole[np.unique(np.linspace(0, len(whole) - 1, widths).round().astype(int))]
        some = whole[np.unique(np.linspace(0, len(whole) - 1, neighbours).round().astype(int))]
        grid.append([dense, *sorted({int(w) for w in (*whole, *some - 8, *some - 4, *some - 3)} - {dense})])
    return grid


def unit_latencies(template: onnx.ModelProto, widths: Sequence[Sequence[int]], rounds: int) -> pd.DataFrame:
    """Latency of each unit alone at each of its `widths[i]`: columns unit, width, ms, ratio (to the unit's first width).

    ONNX Runtime, one thread, batch 1, medians over `rounds`; `template`: from `onnx_template`, its image size counts.
    """
    starts = {name: node.input[0] for node in template.graph.node for name in node.input}
    edges = [starts[f"blocks.{i}.expand.0.weight"] for i in range(len(widths))] + [starts["head.0.weight"]]
    cut = onnx.utils.Extractor(template)
    parts = [cut.extract_model([a], [b]) for a, b in pairwise(edges)]
    dense, runners = MobileNetV3Large(), [{} for _ in parts]
    for place in range(max(map(len, widths))):
        chosen = [options[min(place, len(options) - 1)] for options in widths]
        small = fused(prune(dense, [torch.arange(n) < w for n, w in zip(dense.widths, chosen)]))
        for part, width, table in zip(parts, chosen, runners):
            if width not in table:
                shape = [d.dim_value or 1 for d in part.graph.input[0].type.tensor_type.shape.dim]
                feed = {part.graph.input[0].name: np.random.default_rng(0).normal(size=shape).astype(np.float32)}
                table[width] = partial(session(with_weights(part, small)).run, None, feed)
    frames = []
    for i, table in enumerate(runners):
        times = interleaved(table, rounds, least_ms=1.0)
        frames.append(ratios(times, to=next(iter(table))).rename_axis("width").reset_index().assign(unit=i))
    return pd.concat(frames, ignore_index=True)[["unit", "width", "ms", "ratio"]]

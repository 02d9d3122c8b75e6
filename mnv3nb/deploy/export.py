"""Networks for other programs: ONNX, int8 and torch.export; how an ONNX graph labels images."""

import copy
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from ..data.batches import to_input
from ..system.files import check_ending, write_atomically, write_file

if TYPE_CHECKING:  # an extra, imported where it is used: a .pt2 file takes torch alone
    import onnx
    import onnxruntime


def export_onnx(model: nn.Module, path: str | os.PathLike, image_size: int) -> None:
    """Write the graph `to_onnx(model, image_size)`. Raises ValueError for another ending than .onnx."""
    check_ending(path, ".onnx")
    write_file(path, to_onnx(model, image_size).SerializeToString())


def export_program(model: nn.Module, path: str | os.PathLike, image_size: int) -> None:
    """Write `model` as a torch.export program: `torch.export.load(path).module()(images)` gives the logits.

    Input and output as in `to_onnx`; needs torch alone. Raises ValueError for another ending than .pt2.
    """
    check_ending(path, ".pt2")
    program = _program(model, image_size)
    with write_atomically(path) as file:
        torch.export.save(program, file)


def to_onnx(model: nn.Module, image_size: int) -> "onnx.ModelProto":
    """`model` in eval mode as an ONNX graph (opset 18): input "images" (batch, 3, image_size, image_size), output "logits".

    The batch is dynamic; the images are normalised as `model` takes them: in [-1, 1] if it was trained here.
    """
    names = {"input_names": ["images"], "output_names": ["logits"]}
    program = torch.onnx.export(_program(model, image_size), dynamo=True, opset_version=18, verbose=False, **names)
    graph = program.model_proto
    mean_and_deviation = getattr(model, "normalisation", None)
    inside = f", normalised inside with mean and deviation {mean_and_deviation}" if mean_and_deviation else ""
    graph.doc_string = f"images: RGB, value / 127.5 - 1{inside}; logits: one per class"
    return graph


def _program(model: nn.Module, image_size: int) -> torch.export.ExportedProgram:
    x = next(model.parameters()).new_zeros(2, 3, image_size, image_size)
    batch = torch.export.Dim("batch", min=1)
    return torch.export.export(copy.deepcopy(model).eval(), (x,), dynamic_shapes=({0: batch},))


def session(graph: "onnx.ModelProto", threads: int = 1) -> "onnxruntime.InferenceSession":
    """`graph` ready to run on the CPU; `threads` = 0: all cores."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    return onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])


def onnx_labels(graph: "onnx.ModelProto", images: Tensor, image_size: int) -> Tensor:
    """The class that `graph` gives to each of `images` (uint8 (N, 3, H, W)) in ONNX Runtime, int64 (N,)."""
    run = session(graph, threads=0)
    logits = [run.run(None, feed)[0] for feed in _feeds(images, image_size, 500)]
    return torch.from_numpy(np.concatenate(logits).argmax(1))


def quantized(graph: "onnx.ModelProto", images: Tensor, image_size: int) -> "onnx.ModelProto":
    """`graph` in int8: static quantization, weights per channel, ranges calibrated on `images` (uint8 (N, 3, H, W))."""
    import onnx
    from onnxruntime.quantization import QuantType, quant_pre_process, quantize_static

    feeds = _feeds(images, image_size, 32)
    reader = SimpleNamespace(get_next=lambda: next(feeds, None))
    types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    with tempfile.TemporaryDirectory() as folder:
        plain, ready, small = (Path(folder, f"{name}.onnx") for name in ("plain", "ready", "small"))
        onnx.save(graph, plain)
        quant_pre_process(plain, ready, skip_symbolic_shape=True)
        quantize_static(ready, small, reader, per_channel=True, **types)
        return onnx.load(small)


def _feeds(images: Tensor, image_size: int, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    return ({"images": to_input(x, image_size).contiguous().numpy()} for x in images.split(batch_size))

"""Networks for other programs: torch.export, ONNX and int8; and what an ONNX graph makes of images."""

import copy
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from ..data.batches import to_input
from ..system.files import check_ending, write_atomically, write_file

if TYPE_CHECKING:  # optional packages, imported where they are used: a .pt2 file needs torch only
    import onnx
    import onnxruntime


def export_onnx(model: nn.Module, path: str | os.PathLike, image_size: int) -> None:
    """Write the graph `to_onnx(model, image_size)`. Raises ValueError for another ending than .onnx."""
    check_ending(path, ".onnx")
    write_file(path, to_onnx(model, image_size).SerializeToString())


def export_program(model: nn.Module, path: str | os.PathLike, image_size: int) -> None:
    """Write `model` as a torch.export program: `torch.export.load(path).module()(images)` gives the logits.

    Input and output are those of `to_onnx`. Needs torch only. Raises ValueError for another ending than .pt2.
    """
    check_ending(path, ".pt2")
    program = _program(model, image_size)
    with write_atomically(path) as file:
        torch.export.save(program, file)


def to_onnx(model: nn.Module, image_size: int) -> "onnx.ModelProto":
    """`model` in eval mode as an ONNX graph (opset 18).

    Input "images": (batch, 3, image_size, image_size) with any batch size, in [-1, 1]. Output "logits": (batch, classes).
    """
    program = torch.onnx.export(
        _program(model, image_size),
        dynamo=True,
        opset_version=18,
        verbose=False,
        input_names=["images"],
        output_names=["logits"],
    )
    graph = program.model_proto
    inside = ""
    if hasattr(model, "normalisation"):
        inside = f", normalised inside with mean and deviation {model.normalisation}"
    graph.doc_string = f"images: RGB, value / 127.5 - 1{inside}; logits: one per class"
    return graph


def session(graph: "onnx.ModelProto", threads: int = 1) -> "onnxruntime.InferenceSession":
    """`graph` ready to run on the CPU; `threads` = 0: all cores."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors only
    return onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])


def onnx_labels(graph: "onnx.ModelProto", images: Tensor, image_size: int) -> Tensor:
    """The class that `graph` gives to each of `images` (uint8 (N, 3, H, W)) in ONNX Runtime, int64 (N,)."""
    loaded = session(graph, threads=0)
    logits = []
    for inputs in _graph_inputs(images, image_size, batch_size=500):
        (logits_of_batch,) = loaded.run(None, inputs)
        logits.append(logits_of_batch)
    return torch.from_numpy(np.concatenate(logits).argmax(1))


def quantize(graph: "onnx.ModelProto", images: Tensor, image_size: int) -> "onnx.ModelProto":
    """`graph` in int8: static quantization with a scale per channel for the weights.

    The ranges of the activations are calibrated on `images` (uint8 (N, 3, H, W)).
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quant_pre_process, quantize_static

    inputs = _graph_inputs(images, image_size, batch_size=32)

    class Calibration(CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(inputs, None)

    with tempfile.TemporaryDirectory() as folder:
        original = Path(folder, "original.onnx")
        prepared = Path(folder, "prepared.onnx")
        int8 = Path(folder, "int8.onnx")
        onnx.save(graph, original)
        quant_pre_process(original, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            int8,
            Calibration(),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(int8)


def _program(model: nn.Module, image_size: int) -> torch.export.ExportedProgram:
    """`model` in eval mode as a program for any batch size."""
    x = next(model.parameters()).new_zeros(2, 3, image_size, image_size)
    batch = torch.export.Dim("batch", min=1)
    return torch.export.export(copy.deepcopy(model).eval(), (x,), dynamic_shapes=({0: batch},))


def _graph_inputs(images: Tensor, image_size: int, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """What a graph takes, batch by batch."""
    for batch in images.split(batch_size):
        yield {"images": to_input(batch, image_size).contiguous().numpy()}

"""Networks in and out: safetensors with JSON metadata and a checksum (nothing is ever unpickled), and ONNX."""

import contextlib
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .importance import filter_sparsity
from .model import MobileNetV3Large

FORMAT = "mnv3nb-1"


@contextlib.contextmanager
def write_atomically(path: str | os.PathLike, size: int | None = None) -> Iterator[BinaryIO]:
    """A binary file that appears at `path` whole or not at all: temporary in the same folder, fsync, rename, fsync.

    Raises OSError that names the path and, where `size` is given, the bytes needed; what was at `path` is untouched.
    """
    path = Path(path)
    temporary = None
    try:
        _make_folder(path.parent)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        with open(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno:
            needed = f" ({size} bytes needed)" if size else ""
            raise type(error)(
                error.errno, f"cannot write {path}{needed}: {os.strerror(error.errno)}; nothing there was changed"
            ) from error
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Waits until names made, renamed or removed in `folder` are on the disk."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def save_tensors(path: str | os.PathLike, tensors: dict[str, Tensor], metadata: dict) -> None:
    """Write named tensors and JSON `metadata` to one safetensors file, with a checksum over both."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    text = json.dumps(metadata, sort_keys=True)
    # one entry only: safetensors writes several in any order, and equal networks should be equal files
    payload = save(tensors, {FORMAT: json.dumps([_digest(tensors, text), text])})
    with write_atomically(path, len(payload)) as file:
        file.write(payload)


def load_tensors(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict]:
    """The tensors and metadata of a file that `save_tensors` wrote.

    Raises FileNotFoundError, or ValueError if the file is not ours, truncated or has a byte changed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; give a .safetensors file that mnv3nb wrote")
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            if FORMAT not in header:
                raise ValueError(f"{path} was not written by mnv3nb (it has no {FORMAT!r} entry)")
            # clones, because they are aligned: on a CPU the last bits of a product depend on where its factors begin
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        digest, text = json.loads(header[FORMAT])
        if digest != _digest(tensors, text):
            raise ValueError(f"{path} is damaged: its checksum does not match; copy or make it again")
        metadata = json.loads(text)
        if not isinstance(metadata, dict):
            raise ValueError(f"{path} was not written by mnv3nb (its metadata is no object)")
        return tensors, metadata
    except (SafetensorError, ValueError, AttributeError, TypeError, RecursionError) as error:
        if str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path} is not a whole safetensors file ({error}); copy or make it again") from error


def save_model(model: MobileNetV3Large, path: str | os.PathLike, /, half: bool = False, **metadata) -> None:
    """Write `model` with the widths that rebuild it and any JSON `metadata` (image_size, classes, accuracy, ...).

    `half=True` stores convolution and linear weights in fp16 and all else in fp32: γ of 1e-10 would be 0 in fp16, and
    with it the ranking. The expansions are rounded so that every S (Eq. 3), and so every mask, stays what it was.
    """
    check_ending(path, ".safetensors")
    tensors = dict(model.state_dict())
    if half:
        tensors = {k: _to_half(v, ".expand." in k) if v.ndim > 1 else v for k, v in tensors.items()}
    shape = {"architecture": "mnv3nb/MobileNetV3Large", "num_classes": model.num_classes, "widths": model.widths, "squeeze": model.squeeze}
    save_tensors(path, tensors, {**metadata, "model": shape})


def load_model(path: str | os.PathLike) -> MobileNetV3Large:
    """The network that `save_model` wrote, in fp32, on the CPU, in eval mode; `.metadata` holds what was stored with it.

    Raises FileNotFoundError, or ValueError for a foreign or damaged file or widths that do not fit the tensors.
    """
    tensors, metadata = load_tensors(path)
    if "model" not in metadata:
        raise ValueError(f"{path} holds no model but the state of a training; give a model.safetensors")
    try:
        with torch.device("meta"):  # no memory is taken for widths that a file only claims
            shape = dict(metadata["model"])
            if (name := shape.pop("architecture", None)) != "mnv3nb/MobileNetV3Large":
                raise ValueError(f"{path} holds a network {name!r}")
            model = MobileNetV3Large(**shape)
        tensors = {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
        if wrong := [k for k, v in model.state_dict().items() if k in tensors and v.dtype != tensors[k].dtype]:
            raise TypeError(f"{wrong[0]} is {tensors[wrong[0]].dtype}")
        model.load_state_dict(tensors, assign=True)
    except (RuntimeError, TypeError, OverflowError) as error:
        raise ValueError(f"{path}: its widths do not fit its tensors ({str(error).splitlines()[0]})") from error
    size = metadata.get("image_size", 1)
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"{path}: its image_size must be a whole number of pixels, got {size!r}")
    model.metadata = {key: value for key, value in metadata.items() if key not in ("model", "half")}
    return model.eval()


def export_onnx(model: MobileNetV3Large, path: str | os.PathLike, image_size: int) -> None:
    """Write `model` as ONNX (opset 18): input "images" (batch, 3, image_size, image_size) in [-1, 1], output "logits".

    The batch is dynamic. Needs the packages onnx and onnxscript. Raises ValueError for another ending than .onnx.
    """
    check_ending(path, ".onnx")
    program = torch.onnx.export(
        _program(model, image_size), dynamo=True, opset_version=18, verbose=False, input_names=["images"], output_names=["logits"]
    )
    with write_atomically(path) as file:
        file.write(program.model_proto.SerializeToString())


def export_program(model: MobileNetV3Large, path: str | os.PathLike, image_size: int) -> None:
    """Write `model` as a torch.export program, input and output as in `export_onnx`; running it takes torch alone.

    `torch.export.load(path).module()(images)` gives the logits. Raises ValueError for another ending than .pt2.
    """
    check_ending(path, ".pt2")
    buffer = io.BytesIO()
    torch.export.save(_program(model, image_size), buffer)
    with write_atomically(path) as file:
        file.write(buffer.getvalue())


def _program(model: MobileNetV3Large, image_size: int) -> torch.export.ExportedProgram:
    x = torch.zeros(2, 3, image_size, image_size, device=next(model.parameters()).device)
    return torch.export.export(model.eval(), (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))


def _to_half(weight: Tensor, keep_sparsity: bool) -> Tensor:
    weight = weight.detach().cpu()
    half = weight.half()
    above = weight.abs() >= weight.abs().mean()
    for _ in range(16 if keep_sparsity else 0):
        # one fp16 step towards its own side for each weight that rounding took across the mean
        magnitude = half.float().abs()
        wrong = (magnitude >= magnitude.mean()) != above
        if not wrong.any():
            break
        half.view(torch.int16)[wrong] += torch.where(above[wrong], 1, -1).to(torch.int16)
    same = not keep_sparsity or torch.equal(filter_sparsity(half.float()), filter_sparsity(weight))
    return half if same and half.isfinite().all() else weight  # whole where fp16 is too coarse or too short for it


def _digest(tensors: dict[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        t = tensors[name]
        digest.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
        digest.update(t.reshape(-1).view(torch.uint8).numpy().data if t.numel() else b"")
    return digest.hexdigest()


def check_ending(path: str | os.PathLike, *endings: str) -> None:
    if not os.fspath(path).endswith(endings):
        raise ValueError(f"the path must end in {' or '.join(endings)}, got {os.fspath(path)!r}")

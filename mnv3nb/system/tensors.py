"""Tensors in safetensors files with JSON metadata and a checksum; the state of a training as such tensors."""

import hashlib
import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .files import write_file

FORMAT = "mnv3nb-1"


def save_tensors(path: str | os.PathLike, tensors: dict[str, Tensor], metadata: dict) -> None:
    """Write named tensors and JSON `metadata` to one safetensors file, with a checksum over both."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    text = json.dumps(metadata)
    # one entry only: safetensors writes several in any order, and equal networks should be equal files
    write_file(path, save(tensors, {FORMAT: json.dumps([_digest(tensors, text), text])}))


def load_tensors(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict]:
    """The tensors and metadata of a file that `save_tensors` wrote.

    Raises FileNotFoundError, or ValueError if the file is not ours, truncated or has a byte changed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; give a .safetensors file that mnv3nb wrote")
    try:
        with safe_open(path, "pt") as file:
            digest, text = json.loads((file.metadata() or {}).get(FORMAT, "[null, null]"))
            # clones, because they are aligned: on a CPU the last bits of a product depend on where its factors begin
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()} if text else {}  # noqa: SIM118
        intact = text is not None and digest == _digest(tensors, text)
        metadata = json.loads(text) if intact else {}
    except (SafetensorError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}); copy or make it again") from error
    if text is None:
        raise ValueError(f"{path} was not written by mnv3nb (it has no {FORMAT!r} entry)")
    if not intact or not isinstance(metadata, dict):
        raise ValueError(f"{path} is damaged: its checksum does not match; copy or make it again")
    return tensors, metadata


def _digest(tensors: dict[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        t = tensors[name]
        digest.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
        digest.update(t.reshape(-1).view(torch.uint8).numpy().data if t.numel() else b"")
    return digest.hexdigest()

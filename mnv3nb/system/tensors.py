"""Named tensors and JSON metadata in one safetensors file, with a checksum over both."""

import hashlib
import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .files import write_file

METADATA_KEY = "mnv3nb-1"  # of our one entry in the safetensors metadata; the number is the version of its format


def save_tensors(path: str | os.PathLike, tensors: dict[str, Tensor], metadata: dict) -> None:
    """Write named tensors and JSON `metadata` to one safetensors file, with a checksum over both."""
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(metadata)
    # One entry only: safetensors writes several in a random order, but equal networks should give equal files.
    entry = json.dumps([_checksum(stored, text), text])
    write_file(path, save(stored, {METADATA_KEY: entry}))


def load_tensors(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict]:
    """Read the tensors and the metadata of a file that `save_tensors` wrote.

    Raises FileNotFoundError, or ValueError if mnv3nb did not write the file, or if it is truncated or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; give a .safetensors file that mnv3nb wrote")
    try:
        entry, tensors = _read(path)
    except (SafetensorError, ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}); copy or make it again") from error
    if entry is None:
        raise ValueError(f"{path} was not written by mnv3nb (it has no {METADATA_KEY!r} entry)")
    metadata = _checked_metadata(entry, tensors)
    if metadata is None:
        raise ValueError(f"{path} is damaged: its checksum does not match; copy or make it again")
    return tensors, metadata


def _read(path: Path) -> tuple[str | None, dict[str, Tensor]]:
    """Our metadata entry and the tensors; None and no tensors for a file without our entry."""
    tensors = {}
    with safe_open(path, "pt") as file:
        entry = (file.metadata() or {}).get(METADATA_KEY)
        if entry is None:
            return None, {}
        for name in file.keys():  # noqa: SIM118 (a safetensors file cannot be iterated)
            # A clone is aligned in memory, a view of the file is not. On a CPU, alignment changes a product's last bits.
            tensors[name] = file.get_tensor(name).clone()
    return entry, tensors


def _checked_metadata(entry: str, tensors: dict[str, Tensor]) -> dict | None:
    """The metadata in `entry`; None if the checksum beside it does not match."""
    try:
        checksum, text = json.loads(entry)
        if checksum != _checksum(tensors, text):
            return None
        metadata = json.loads(text)
    except (ValueError, AttributeError, TypeError, RecursionError):  # a damaged entry can be any JSON, or none
        return None
    return metadata if isinstance(metadata, dict) else None


def _checksum(tensors: dict[str, Tensor], text: str) -> str:
    """SHA-256 of the metadata's text and of each tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()

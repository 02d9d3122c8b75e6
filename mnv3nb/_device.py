"""The device a network runs on, and what makes its forward pass fast there."""

import contextlib
import os

import torch

from ._small_maps import SmallMaps


def pick_device(name: str | None = None) -> torch.device:
    """The device named, else `$MNV3NB_DEVICE`, else cuda, else mps, else cpu."""
    name = name or os.environ.get("MNV3NB_DEVICE")
    if not name:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.device(name)
    except RuntimeError:
        raise ValueError(f"unknown device {name!r}; cuda, mps and cpu are usual") from None


def fast_forward(device: torch.device) -> contextlib.AbstractContextManager:
    """What a forward pass gains from on `device`: bf16 on CUDA, better kernels for tiny maps on a CPU."""
    if device.type == "cuda":
        return torch.autocast("cuda", torch.bfloat16)
    return SmallMaps() if device.type == "cpu" else contextlib.nullcontext()

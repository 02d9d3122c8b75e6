"""The device a network runs on, what makes its forward pass fast there, and what is stored of it beside results."""

import contextlib
import os
import platform
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import torch
import torchvision
from torch.backends.cpu import get_cpu_capability

from .files import CHECKOUT


def pick_device(name: str | None = None) -> torch.device:
    """The device named, else `$MNV3NB_DEVICE`, else cuda, else mps, else cpu."""
    there = {"cuda": torch.cuda.device_count(), "mps": torch.backends.mps.is_available(), "cpu": 1}
    name = name or os.environ.get("MNV3NB_DEVICE") or next(kind for kind in there if there[kind])
    with contextlib.suppress(RuntimeError):
        device = torch.device(name)
        if (device.index or 0) < there.get(device.type, 1):
            return device
    raise ValueError(f"no device {name!r} here; there is {', '.join(kind for kind in there if there[kind])}")


def cpu_name() -> str:
    """The processor's name as its maker gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def environment(device: torch.device) -> dict:
    """What a run was computed on; of a CPU also the instruction set that torch uses, which decides the last bits."""
    cuda = device.type == "cuda"
    return {
        "hardware": torch.cuda.get_device_name(device) if cuda else f"{cpu_name()} {get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "commit": _commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


@contextlib.contextmanager
def with_threads(count: int) -> Iterator[None]:
    """PyTorch's number of CPU threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _commit() -> str | None:
    command = ["git", f"--git-dir={CHECKOUT / '.git'}", f"--work-tree={CHECKOUT}", "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None

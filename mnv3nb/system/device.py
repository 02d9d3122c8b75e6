"""The device that a network runs on, and the description of the machine that is stored beside results."""

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
    """The device named, else `$MNV3NB_DEVICE`, else cuda, else mps, else cpu. Raises ValueError if it is not here."""
    counts = {
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
        "cpu": 1,
    }
    present = [kind for kind, count in counts.items() if count]
    name = name or os.environ.get("MNV3NB_DEVICE") or present[0]
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or (device.index or 0) >= counts.get(device.type, 1):
        raise ValueError(f"no device {name!r} here; there is {', '.join(present)}")
    return device


@contextlib.contextmanager
def with_threads(count: int) -> Iterator[None]:
    """PyTorch's number of CPU threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def environment(device: torch.device) -> dict:
    """What a run is computed on. A CPU's instruction set is named, too: it decides the last bits."""
    if device.type == "cuda":
        hardware = torch.cuda.get_device_name(device)
    else:
        hardware = f"{cpu_name()} {get_cpu_capability()}"
    return {
        "hardware": hardware,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "commit": _commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def cpu_name() -> str:
    """The processor's name as its maker gives it."""
    with contextlib.suppress(OSError):  # a file of Linux
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of the checkout, "-dirty" if it has changes; None without git."""
    command = ["git", f"--git-dir={CHECKOUT / '.git'}", f"--work-tree={CHECKOUT}", "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None

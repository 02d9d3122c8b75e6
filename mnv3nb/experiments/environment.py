"""What a run was computed on: hardware, versions, commit and date."""

import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import torch
import torchvision
from torch.backends.cpu import get_cpu_capability

from .._device import cpu_name

ROOT = Path(__file__).resolve().parents[2]


def environment(device: torch.device) -> dict:
    """Of a CPU also the instruction set that torch uses, which decides the last bits."""
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


def _commit() -> str | None:
    command = ["git", f"--git-dir={ROOT / '.git'}", f"--work-tree={ROOT}", "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None

"""The device a network runs on, what makes its forward pass fast there, and what is stored of it beside results."""

import contextlib
import os
import platform
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torch.backends.cpu import get_cpu_capability

from ._files import CHECKOUT
from ._small_maps import SmallMaps


def pick_device(name: str | None = None) -> torch.device:
    """The device named, else `$MNV3NB_DEVICE`, else cuda, else mps, else cpu."""
    there = {"cuda": torch.cuda.device_count(), "mps": torch.backends.mps.is_available(), "cpu": 1}
    name = name or os.environ.get("MNV3NB_DEVICE") or next(kind for kind in there if there[kind])
    with contextlib.suppress(RuntimeError):
        device = torch.device(name)
        if (device.index or 0) < there.get(device.type, 1):
            return device
    raise ValueError(f"no device {name!r} here; there is {', '.join(kind for kind in there if there[kind])}")


def fast_forward(device: torch.device) -> contextlib.AbstractContextManager:
    """What a forward pass gains from on `device`: bf16 on CUDA, better kernels for tiny maps on a CPU."""
    if device.type == "cuda":
        return torch.autocast("cuda", torch.bfloat16)
    return SmallMaps(_matmul_pixels()) if device.type == "cpu" else contextlib.nullcontext()


class Replayed:
    """`step(*tensors)` of `model`, recorded on CUDA as a graph and replayed for inputs of the same shapes; elsewhere just
    called.

    To launch the hundreds of small kernels of a small network takes a CPU longer than they take the GPU. The first
    calls are not recorded, so that the libraries have set up what they need. A step that cannot be recorded, because
    it waits for the GPU, is called. What a network draws or decides in Python, a replay repeats.
    """

    FIRST = 3

    def __init__(self, step: Callable[..., None], model: nn.Module, device: torch.device):
        self.step, self.model, self.places = step, model, None
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def begin(self) -> None:
        """Before the first of some calls: what was recorded holds as long as no tensor of the network has moved."""
        places = [tensor.data_ptr() for tensor in (*self.model.parameters(), *self.model.buffers())]
        if places != self.places:
            self.places, self.graph, self.inputs, self.calls = places, None, (), Counter()

    def __call__(self, *inputs: Tensor) -> None:
        shapes = tuple(given.shape for given in inputs)
        if self.stream and not self.inputs:
            self.calls[shapes] += 1
            if self.calls[shapes] <= self.FIRST:
                return self._apart(*inputs)
            self._record(*inputs)
        if not self.graph or shapes != tuple(mine.shape for mine in self.inputs):
            return self.step(*inputs)
        for mine, given in zip(self.inputs, inputs):
            mine.copy_(given)
        self.graph.replay()

    def _apart(self, *inputs: Tensor) -> None:
        usual = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(usual)
        with torch.cuda.stream(self.stream):
            self.step(*inputs)
        usual.wait_stream(self.stream)

    def _record(self, *inputs: Tensor) -> None:
        self.inputs, graph = tuple(given.clone() for given in inputs), torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                self.step(*self.inputs)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            print(
                f"this network's step cannot be recorded as a CUDA graph, so it is slower ({reason})", file=sys.stderr
            )
        else:
            self.graph = graph


def adam(model: nn.Module, lr: float, device: torch.device) -> torch.optim.Adam:
    """Adam as fast as `device` has it; on CUDA its rate is a tensor, which a graph reads where it lies."""
    if device.type == "cuda":
        return torch.optim.Adam(model.parameters(), torch.tensor(lr, device=device), fused=True, capturable=True)
    return torch.optim.Adam(model.parameters(), lr, fused=device.type != "mps")


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> float:
    """Sets the learning rate, and returns it."""
    group = optimizer.param_groups[0]
    group["lr"] = group["lr"].fill_(lr) if isinstance(group["lr"], Tensor) else lr
    return lr


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


@cache
def _matmul_pixels() -> int:
    """Of larger maps, a 1×1 convolution gains nothing as a matrix product.

    On AMD's processors with AVX-512 only single pixels do: oneDNN's convolutions use those instructions there, MKL's
    matrix products do not.
    """
    return 1 if "AMD" in cpu_name() and get_cpu_capability() == "AVX512" else 64
